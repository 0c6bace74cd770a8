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

func intentKey(id model.VMID) string { return model.IntentPrefix + id.String() }

// get reads a key that may be missing: then the KV is empty, which is revision 0.
func (d Deps) get(ctx context.Context, key string, r store.Read) (store.KV, error) {
	kv, err := d.Store.Get(ctx, key, r)
	if errors.Is(err, store.ErrNotFound) {
		return store.KV{Key: key}, nil
	}
	return kv, err
}

func getJSON[T any](ctx context.Context, d Deps, key string, r store.Read) (v T, kv store.KV, err error) {
	kv, err = d.get(ctx, key, r)
	if err != nil || kv.ModRevision == 0 {
		return v, kv, err
	}
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		return v, kv, fmt.Errorf("parse %s: %w", key, err)
	}
	return v, kv, nil
}

// epoch returns a node's epoch, and an error when the node was fenced or never lived.
func (d Deps) epoch(ctx context.Context, node string, r store.Read) (uint64, store.KV, error) {
	live, kv, err := getJSON[model.Live](ctx, d, model.LivePrefix+node, r)
	switch {
	case err != nil:
		return 0, kv, err
	case kv.ModRevision == 0:
		return 0, kv, model.Errorf(model.ErrUnavailable, "node %s has not registered: start its agent", node)
	case live.Fenced:
		return live.Epoch, kv, model.Errorf(model.ErrUnavailable, "node %s was fenced: wait until it is back", node)
	}
	return live.Epoch, kv, nil
}

// same reports whether node still lives in the epoch given.
func (d Deps) same(ctx context.Context, node string, epoch uint64) (bool, error) {
	now, kv, err := d.epoch(ctx, node, store.Linearizable)
	if err != nil && kv.ModRevision == 0 && !errors.Is(err, model.ErrUnavailable) {
		return false, err
	}
	return err == nil && now == epoch, nil
}

// writeIntent announces the migration and returns the intent and its revision.
// sent with model.ErrNoQuorum means that it may have been written all the same.
func (d Deps) writeIntent(ctx context.Context, r Request) (in model.Intent, revision int64, sent bool, err error) {
	in = model.Intent{VMID: r.VMID, Source: d.Node, Target: r.Target, Task: r.Task}
	if in.SourceEpoch, _, err = d.epoch(ctx, d.Node, store.Linearizable); err != nil {
		return in, 0, false, err
	}
	if in.TargetEpoch, _, err = d.epoch(ctx, r.Target, store.Linearizable); err != nil {
		return in, 0, false, err
	}
	conf, err := d.Store.Get(ctx, model.GuestConfigKey(d.Node, r.VMID), store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return in, 0, false, model.Errorf(model.ErrNotFound, "guest %s is not on node %s", r.VMID, d.Node)
	}
	if err != nil {
		return in, 0, false, err
	}
	value, err := json.Marshal(in)
	if err != nil {
		return in, 0, false, err
	}
	key := intentKey(r.VMID)
	revision, err = d.Store.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: conf.Key, Revision: conf.ModRevision}, {Key: key}},
		Then: []store.Op{store.Put(key, value)},
	})
	if errors.Is(err, store.ErrConflict) {
		err = model.Errorf(model.ErrBusy, "guest %s is already being moved or was just changed: try again", r.VMID)
	}
	return in, revision, true, err
}

// release deletes the intent of the revision given. A conflict means that somebody else decided.
func (d Deps) release(ctx context.Context, id model.VMID, revision int64) error {
	key := intentKey(id)
	_, err := d.Store.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: revision}}, Then: []store.Op{store.Delete(key)}})
	return err
}

// ownership is what the store says about a guest and this node.
type ownership struct {
	intent bool // ours, and still there
	owner  bool // the file is under this node's path
	proven bool // migrate.Facts.Proven
}

// ownership reads it, linearizably. The intent is read first: once it is gone, only the file counts.
func (d Deps) ownership(ctx context.Context, id model.VMID, n Note) (ownership, error) {
	in, kv, err := getJSON[model.Intent](ctx, d, intentKey(id), store.Linearizable)
	if err != nil {
		return ownership{}, err
	}
	conf, err := d.get(ctx, model.GuestConfigKey(d.Node, id), store.Linearizable)
	if err != nil {
		return ownership{}, err
	}
	o := ownership{intent: kv.ModRevision != 0 && in.Task == n.Task, owner: conf.ModRevision != 0}
	if o.intent || !o.owner || n.IntentRevision == 0 {
		return o, nil
	}
	if n.Role == migrate.RoleSource {
		o.proven = conf.CreateRevision < n.IntentRevision
		return o, nil
	}
	deleted, err := d.deletion(ctx, id, n.IntentRevision)
	o.proven = err == nil && conf.CreateRevision == deleted
	if errors.Is(err, store.ErrCompacted) {
		err = nil // too long ago to be proved
	}
	return o, err
}

// deletion returns the revision that deleted the intent of the revision given,
// which must be gone; store.ErrCompacted when that is not known any more.
func (d Deps) deletion(ctx context.Context, id model.VMID, revision int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	key := intentKey(id)
	for b := range d.Store.Watch(ctx, key, revision+1) {
		for _, ev := range b.Events {
			if ev.Key == key && ev.Deleted {
				return ev.ModRevision, nil
			}
		}
		if b.Err != nil {
			return 0, fmt.Errorf("watch %s: %w", key, b.Err)
		}
	}
	return 0, fmt.Errorf("watch %s: %w", key, store.ErrClosed)
}

// fate says what became of the intent, for the side that the note is of.
func (d Deps) fate(ctx context.Context, id model.VMID, n Note) (migrate.Fate, error) {
	o, err := d.ownership(ctx, id, n)
	switch {
	case err != nil:
		return migrate.Pending, err
	case o.intent:
		return migrate.Pending, nil
	case o.owner && o.proven:
		return migrate.Mine, nil
	}
	return migrate.Theirs, nil
}
