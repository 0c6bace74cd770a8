package move

import (
	"context"
	"errors"
	"fmt"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// Recover settles what an agent before this one left of a migration of the guest,
// and returns when nothing is left to do, or model.ErrNotFound when there was
// nothing. It may take long: a target waits for the rest of the memory, and
// nothing can be decided without a quorum. Call it for each guest with a note or
// an intent that names this node, before anything else acts on the guest. It returns model.ErrBusy
// while the guest is claimed, and claims it itself. When ctx ends it returns and
// has changed nothing more. Of d it uses all but Listen and Start.
func Recover(ctx context.Context, d TargetDeps, id model.VMID) (migrate.Verdict, error) {
	free, err := d.Claims.Claim(id)
	if err != nil {
		return "", err
	}
	defer free()
	v, err := recoverGuest(ctx, d, id)
	if err != nil {
		return "", fmt.Errorf("recover migration of guest %s: %w", id, err)
	}
	return v, nil
}

func recoverGuest(ctx context.Context, d TargetDeps, id model.VMID) (migrate.Verdict, error) {
	q, err := d.Find(ctx, id)
	if err != nil && !errors.Is(err, model.ErrNotFound) {
		return "", err
	}
	if err != nil {
		q = nil
	}
	n, err := d.recall(ctx, id, q)
	if err != nil {
		return "", err
	}
	s := &settling{
		deps: d.Deps, id: id, note: n, qemu: q, grace: d.Config.OwnershipLimit,
		commit: &committer{TargetDeps: d, id: id, note: n},
	}
	v, err := s.run(ctx)
	if err != nil {
		return "", err
	}
	return v, d.Notes.Remove(id)
}

// recall returns the note, or what it would say if the agent had come to write
// it: the intent is written first.
func (d Deps) recall(ctx context.Context, id model.VMID, q QEMU) (Note, error) {
	n, err := d.Notes.Load(id)
	if err != nil && !errors.Is(err, model.ErrNotFound) {
		return Note{}, err
	}
	in, kv, ierr := getJSON[model.Intent](ctx, d, intentKey(id), store.Linearizable)
	if ierr != nil {
		return Note{}, ierr
	}
	concerned := kv.ModRevision != 0 && (in.Source == d.Node || in.Target == d.Node)
	switch {
	case err == nil && (!concerned || in.Task == n.Task):
		return n, nil
	case !concerned:
		return Note{}, model.Errorf(model.ErrNotFound, "guest %s was not being moved", id)
	}
	n = Note{Role: migrate.RoleTarget, Task: in.Task, IntentRevision: kv.ModRevision, WasRunning: true}
	if in.Source == d.Node {
		n.Role = migrate.RoleSource
		if q != nil {
			status, err := monitor{q.QMP()}.status(ctx)
			if err != nil {
				return Note{}, err
			}
			n.WasRunning = status != "paused"
		}
	}
	return n, nil
}
