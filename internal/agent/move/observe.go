package move

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// observer tells one side what the store says: the intent's fate, the other
// node's end, a lost quorum. It watches, and asks once a second besides.
type observer struct {
	deps  Deps
	id    model.VMID
	note  Note
	other string // the other node
	epoch uint64 // its epoch in the intent
	out   chan migrate.Event

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (d Deps) observe(ctx context.Context, id model.VMID, n Note, other string, epoch uint64) *observer {
	o := &observer{deps: d, id: id, note: n, other: other, epoch: epoch, out: make(chan migrate.Event)}
	ctx, o.cancel = context.WithCancel(ctx)
	o.wg.Add(1)
	go o.run(ctx)
	return o
}

// stop ends the observer and waits for it. On nil it does nothing.
func (o *observer) stop() {
	if o != nil {
		o.cancel()
		o.wg.Wait()
	}
}

// events is nil, and so never ready, for an observer that was not started.
func (o *observer) events() <-chan migrate.Event {
	if o == nil {
		return nil
	}
	return o.out
}

func (o *observer) run(ctx context.Context) {
	defer o.wg.Done()
	watch := o.deps.Store.Watch(ctx, intentKey(o.id), o.note.IntentRevision+1)
	ticker := time.NewTicker(storeEvery)
	defer ticker.Stop()
	silent := 0
	for {
		select {
		case <-ctx.Done():
			return
		case b, ok := <-watch:
			if !ok || b.Err != nil {
				watch = nil // the question once a second remains
				continue
			}
		case <-ticker.C:
			o.look(ctx)
		}
		fate, err := o.deps.fate(ctx, o.id, o.note)
		switch {
		case errors.Is(err, store.ErrNoQuorum):
			if silent++; silent == storeLost {
				o.tell(ctx, migrate.NoQuorum{})
			}
		case err == nil:
			silent = 0
			if fate != migrate.Pending {
				o.tell(ctx, migrate.Decided{Fate: fate})
				return
			}
		}
	}
}

// look reports that the other node was fenced or began anew since the intent was written.
func (o *observer) look(ctx context.Context) {
	epoch, kv, err := o.deps.epoch(ctx, o.other, store.Local)
	if kv.ModRevision == 0 {
		return // not known here, or the context ended
	}
	if err != nil {
		o.tell(ctx, migrate.Failed{Reason: err.Error()})
	} else if epoch != o.epoch {
		o.tell(ctx, migrate.Failed{Reason: fmt.Sprintf("node %s was fenced since the migration began", o.other)})
	}
}

func (o *observer) tell(ctx context.Context, ev migrate.Event) {
	select {
	case o.out <- ev:
	case <-ctx.Done():
	}
}
