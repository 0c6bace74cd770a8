package agent

import (
	"context"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// errStopNotWanted ends a stop that the requested state does not ask for any more.
var errStopNotWanted = model.Errorf(model.ErrConflict, "the requested state was changed, so the guest is not stopped by force: unless it obeys its power button it runs on")

// whileStopWanted is ctx until the requested state of the guest is changed to one that does not ask for a stop. release ends it, and
// must be called.
func (w *haWorker) whileStopWanted(ctx context.Context, id model.VMID) (while context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	changed, unsubscribe := w.mirror.Subscribe()
	began, _ := w.requested(id)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if now, ok := w.requested(id); ok && now != began && now != pveconf.HAStopped && now != pveconf.HADisabled {
				cancel(errStopNotWanted)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
		unsubscribe()
	}
}

// requested is the state asked for, "" for a guest that is no HA resource; not ok while that cannot be read.
func (w *haWorker) requested(id model.VMID) (state pveconf.HAState, ok bool) {
	all, err := mirror.Decode(w.mirror.Snapshot(), haResourcesKey, pveconf.ParseHAResources)
	return statesOf(all.Value)[id], err == nil
}
