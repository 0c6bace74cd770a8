package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// errFenced: this node is not any more the one that the intent names.
var errFenced = errors.New("this node was fenced since the migration began")

// committer makes the transaction that gives the guest to this node. What the
// transaction compares is read ahead, so that nothing but the transaction itself costs time
// while the guest stands still.
type committer struct {
	TargetDeps
	id      model.VMID
	note    Note
	guarded bool // the process is under the guard

	intent                  model.Intent
	intentKV, conf, protect store.KV
}

// load reads what is compared; store.ErrConflict when the intent is gone. On an
// error everything stays as it was read before, and the transaction will not match.
func (c *committer) load(ctx context.Context) error {
	intent, kv, err := getJSON[model.Intent](ctx, c.Deps, intentKey(c.id), store.Linearizable)
	if err != nil {
		return err
	}
	if kv.ModRevision == 0 || kv.ModRevision != c.note.IntentRevision || intent.Task != c.note.Task || intent.Target != c.Node {
		return fmt.Errorf("guest %s is not being moved here by this task: %w", c.id, store.ErrConflict)
	}
	conf, err := c.Store.Get(ctx, model.GuestConfigKey(intent.Source, c.id), store.Linearizable)
	if err != nil {
		return err
	}
	protect, err := c.get(ctx, model.ProtectedPrefix+c.id.String(), store.Linearizable)
	if err != nil {
		return err
	}
	c.intent, c.intentKV, c.conf, c.protect = intent, kv, conf, protect
	return nil
}

// guard makes sure that what the transaction says about protection is true.
func (c *committer) guard(ctx context.Context) error {
	if c.protect.ModRevision == 0 || c.guarded {
		return nil
	}
	if c.Protect == nil {
		return errors.New("the guest became protected under way and there is no guard to protect it")
	}
	if err := c.Protect(ctx, c.id); err != nil {
		return fmt.Errorf("protect guest %s: %w", c.id, err)
	}
	c.guarded = true
	return nil
}

// once does everything from the start; a conflict is no error, the caller looks again anyway.
func (c *committer) once(ctx context.Context) error {
	err := c.load(ctx)
	if err == nil {
		err = c.guard(ctx)
	}
	if err == nil {
		err = c.try(ctx, store.Linearizable)
	}
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}

// try sends the transaction. It compares the node's own liveness record too: who is
// fenced between the reading and the transaction does not become an owner.
func (c *committer) try(ctx context.Context, fresh store.Read) error {
	if c.intentKV.ModRevision == 0 {
		// Revision 0 in a compare would mean "there is no intent", which is when this node has no right to the guest.
		return fmt.Errorf("guest %s has no intent: %w", c.id, store.ErrConflict)
	}
	if c.Ready != nil {
		if err := c.Ready(ctx, c.id); err != nil {
			return err
		}
	}
	epoch, live, err := c.epoch(ctx, c.Node, fresh)
	if live.ModRevision != 0 && (err != nil || epoch != c.intent.TargetEpoch) {
		return errFenced
	}
	if err != nil {
		return err
	}
	t, err := c.txn(live)
	if err != nil {
		return err
	}
	_, err = c.Store.Txn(ctx, t)
	return err
}

func (c *committer) txn(live store.KV) (store.Txn, error) {
	to := model.GuestConfigKey(c.Node, c.id)
	t := store.Txn{
		If: []store.Cond{
			{Key: c.intentKV.Key, Revision: c.intentKV.ModRevision},
			{Key: c.conf.Key, Revision: c.conf.ModRevision},
			{Key: to},
			{Key: c.protect.Key, Revision: c.protect.ModRevision},
			{Key: live.Key, Revision: live.ModRevision},
		},
		Then: []store.Op{store.Delete(c.conf.Key), store.Put(to, c.conf.Value), store.Delete(c.intentKV.Key)},
	}
	if c.protect.ModRevision == 0 {
		return t, nil
	}
	value, err := json.Marshal(model.Protected{Node: c.Node})
	t.Then = append(t.Then, store.Put(c.protect.Key, value))
	return t, err
}

// decide sends the transaction until it is known who owns the guest. gone ends the
// wish to own it: the process died.
func (c *committer) decide(ctx context.Context, gone <-chan struct{}) migrate.Fate {
	pause := settleFirst
	for fresh := store.Local; ; fresh = store.Linearizable {
		err := c.try(ctx, fresh)
		if err == nil {
			return migrate.Mine
		}
		fate, ferr := c.fate(ctx, c.id, c.note)
		if ferr == nil && fate != migrate.Pending {
			return fate
		}
		c.log(c.id, fmt.Sprintf("taking the guest over: %v; trying again", err))
		select {
		case <-gone:
			return migrate.Theirs
		default:
		}
		if errors.Is(err, errFenced) && fresh == store.Linearizable {
			return migrate.Theirs
		}
		if !errors.Is(err, store.ErrConflict) {
			if sleep(ctx, pause) != nil {
				return migrate.Pending
			}
			pause = min(2*pause, settleMost)
		}
		if err := c.load(ctx); err == nil {
			err = c.guard(ctx)
			if err != nil {
				c.log(c.id, err.Error())
			}
		}
	}
}
