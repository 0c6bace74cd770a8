package move

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// settling is one run of migrate.Resolve to its end.
type settling struct {
	deps   Deps
	id     model.VMID
	note   Note
	qemu   QEMU // nil: none
	giveUp bool
	commit *committer // nil on the source
	grace  time.Duration

	refused int
	last    migrate.Decision
}

// The pause between two looks grows from the first to the second: a guest may stand
// still meanwhile, so it begins short; a missing quorum can last.
const (
	settleFirst = 20 * time.Millisecond
	settleMost  = 500 * time.Millisecond
)

// run gathers the facts, does what Resolve says and begins again until nothing is
// left to do. It goes on through lost quorums and refusals, until ctx ends.
func (s *settling) run(ctx context.Context) (migrate.Verdict, error) {
	began := time.Now()
	pause := settleFirst
	for {
		d, err := s.once(ctx, time.Since(began))
		if err == nil && d.Step == migrate.StepNothing {
			return d.Verdict, nil
		}
		if err == nil && d.Step != migrate.StepWait && d.Step != migrate.StepCancel {
			pause = settleFirst
			continue
		}
		if err != nil && ctx.Err() == nil {
			s.deps.log(s.id, fmt.Sprintf("settling the migration: %v; trying again", err))
		}
		if err := sleep(ctx, pause); err != nil {
			return "", err
		}
		pause = min(2*pause, settleMost)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *settling) once(ctx context.Context, waited time.Duration) (migrate.Decision, error) {
	f, revision, err := s.facts(ctx)
	if err != nil {
		return migrate.Decision{}, err
	}
	f.Waited = waited
	d := migrate.Resolve(f)
	if d.Step != s.last.Step && d.Step != migrate.StepNothing {
		s.deps.log(s.id, d.Reason)
	}
	s.last = d
	return d, s.do(ctx, d.Step, revision)
}

// facts of this moment, and the intent's revision if there is one.
func (s *settling) facts(ctx context.Context) (migrate.Facts, int64, error) {
	f := migrate.Facts{Role: s.note.Role, GiveUp: s.giveUp, WasRunning: s.note.WasRunning, Grace: s.grace, Refused: s.refused}
	in, kv, err := getJSON[model.Intent](ctx, s.deps, intentKey(s.id), store.Linearizable)
	if err != nil {
		return f, 0, err
	}
	if kv.ModRevision != 0 && in.Task == s.note.Task {
		s.note.IntentRevision = kv.ModRevision
	}
	o, err := s.deps.ownership(ctx, s.id, s.note)
	if err != nil {
		return f, 0, err
	}
	f.Intent, f.Owner, f.Proven = o.intent, o.owner, o.proven
	if f.Intent && f.Role == migrate.RoleTarget {
		if f.Live, err = s.deps.same(ctx, s.deps.Node, in.TargetEpoch); err != nil {
			return f, 0, err
		}
		source, err := s.deps.same(ctx, in.Source, in.SourceEpoch)
		if err != nil {
			return f, 0, err
		}
		f.GiveUp = f.GiveUp || !source
	}
	return f, kv.ModRevision, s.ask(ctx, &f)
}

// ask adds what QEMU says; a process whose connection is over is gone.
func (s *settling) ask(ctx context.Context, f *migrate.Facts) error {
	if s.qemu == nil {
		return nil
	}
	m := monitor{s.qemu.QMP()}
	status, err := m.status(ctx)
	if err == nil {
		var i info
		i, err = m.info(ctx)
		f.QEMU, f.Migration = status, i.Status
	}
	if s.over() {
		f.QEMU, f.Migration = "", ""
		return s.qemu.Destroy(ctx)
	}
	return err
}

// over reports that the process is gone.
func (s *settling) over() bool {
	select {
	case <-s.qemu.QMP().Done():
		return true
	default:
		return false
	}
}

func (s *settling) do(ctx context.Context, step migrate.Step, revision int64) error {
	switch step {
	case migrate.StepNothing, migrate.StepWait:
	case migrate.StepRelease:
		err := s.deps.release(ctx, s.id, revision)
		if errors.Is(err, store.ErrConflict) {
			return nil // somebody else decided: look again
		}
		return err
	case migrate.StepCommit:
		return s.commit.once(ctx)
	case migrate.StepCancel:
		return monitor{s.qemu.QMP()}.do(ctx, "migrate_cancel", nil, nil)
	case migrate.StepResume:
		return s.resume(ctx)
	case migrate.StepDestroy:
		if err := s.qemu.Destroy(ctx); err != nil {
			return err
		}
		s.qemu = nil
	}
	return nil
}

func (s *settling) resume(ctx context.Context) error {
	m := monitor{s.qemu.QMP()}
	if err := m.cont(ctx); err != nil {
		s.refused++
		return err
	}
	if err := m.announce(ctx); err != nil {
		s.deps.log(s.id, fmt.Sprintf("the switches were not told where the guest is: %v", err))
	}
	return nil
}
