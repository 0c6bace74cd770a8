package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	corehealth "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/health"
	"sauh.dev/sauh/internal/qemu"
)

// panicNotes keep, beside a guest's other files, that its kernel has panicked and was not reset since: QEMU tells of it once, and an agent
// that starts later would take the guest for well. A note is about one process.
type panicNotes struct{ dir string }

// panicNote names the process.
type panicNote struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"`
	BootID     string `json:"boot_id"`
}

func noteOf(f qemu.Facts) panicNote { return panicNote{f.PID, f.StartTicks, f.BootID} }

func (d panicNotes) file(id model.VMID) string { return filepath.Join(d.dir, id.String()+".panicked") }

// has reports whether the guest of that process has panicked. A note that cannot be read says nothing.
func (d panicNotes) has(id model.VMID, f qemu.Facts) bool {
	data, err := os.ReadFile(d.file(id))
	if err != nil {
		return false
	}
	var n panicNote
	return json.Unmarshal(data, &n) == nil && n == noteOf(f)
}

// set has the note say whether it has panicked. The note about another process is left to that.
func (d panicNotes) set(id model.VMID, f qemu.Facts, panicked bool) error {
	if panicked {
		return saveJSON(d.file(id), noteOf(f))
	}
	if !d.has(id, f) {
		return nil
	}
	if err := os.Remove(d.file(id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remembering tells first what was noted of a guest, and then what its QEMU tells and what the node says from which it came.
type remembering struct {
	health.Follower
	panicked  bool
	elsewhere <-chan struct{}
}

// Follow implements health.Follower.
func (r remembering) Follow(ctx context.Context, tell func(corehealth.Incident)) {
	if r.panicked {
		tell(corehealth.Incident{Kind: corehealth.PanickedBefore, Time: time.Now()})
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.elsewhere:
				tell(corehealth.Incident{Kind: corehealth.PanickedElsewhere, Time: time.Now()})
			}
		}
	})
	r.Follower.Follow(ctx, tell)
}

// panickedRequest tells the node that a guest has migrated to that its kernel panicked before, and was not reset since. QEMU has told the source alone.
type panickedRequest struct {
	VMID model.VMID `json:"vmid"`
}

// tellLimit bounds the telling. Whom it does not reach takes the guest for well.
const tellLimit = 5 * time.Second

// handOver tells target what is known of a guest that has gone there, whose process p has ended here: until it stood still everything that its
// QEMU said was heard, whenever in the migration that was.
func (d *departures) handOver(ctx context.Context, id model.VMID, p *proc, target string, say func(format string, args ...any)) {
	if p.health().Sick != corehealth.SickPanicked {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellLimit)
	defer cancel()
	if _, err := callPeer[struct{}](ctx, d.peers, target, "migrate/panicked", panickedRequest{id}); err != nil {
		say("%s does not know that the guest's kernel has panicked, and will not reset it: %v", target, err)
		return
	}
	say("%s knows that the guest's kernel has panicked", target)
}

// panicked takes in what the source of a guest that has arrived here has seen. A process that did not arrive is another one.
func (a *arrivals) panicked(_ context.Context, peer string, r panickedRequest) (struct{}, error) {
	p := a.procs.get(r.VMID)
	if p == nil || !p.Spec().Incoming {
		return struct{}{}, model.Errorf(model.ErrNotFound, "no process of guest %s is on %s that came from another node", r.VMID, a.node)
	}
	a.log.Warn("a guest has arrived whose kernel has panicked", "vmid", r.VMID, "from", peer)
	select {
	case p.panicked <- struct{}{}:
	default: // the token of an earlier word is still there
	}
	return struct{}{}, nil
}
