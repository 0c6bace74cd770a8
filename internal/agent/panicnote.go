package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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

// remembering tells first what was noted of a guest, and then what its QEMU tells.
type remembering struct {
	health.Follower
	panicked bool
}

// Follow implements health.Follower.
func (r remembering) Follow(ctx context.Context, tell func(corehealth.Incident)) {
	if r.panicked {
		tell(corehealth.Incident{Kind: corehealth.PanickedBefore, Time: time.Now()})
	}
	r.Follower.Follow(ctx, tell)
}
