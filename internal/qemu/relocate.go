package qemu

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"sauh.dev/sauh/internal/core/model"
)

// Relocate turns s, with which a guest runs on another node, into the Spec of the process that takes its memory over
// here. Everything that the guest sees stays: a configuration that was changed since its start is for the next start. What
// belongs to the node is this one's: the run directory, the images' paths, whether O_DIRECT works. runDir and accel are as in
// [FromConfig]. What this node cannot offer, and what ties a guest to its node, is refused by a sentence that names the key.
func Relocate(ctx context.Context, s Spec, runDir, accel string, r Resolver) (Spec, error) {
	if s.Accel == KVM && accel != KVM {
		return Spec{}, model.Errorf(model.ErrUnavailable, "kvm: the guest runs with KVM, which does not work there")
	}
	typ, layout, ok := splitMachine(s.Machine)
	if !ok || layout > currentLayout {
		return Spec{}, model.Errorf(model.ErrInvalid, "the guest runs as a %s, which this node's program does not know: upgrade the node, or move the guest while it is off", s.Machine)
	}
	_, err := r.Machine(ctx, typ)
	if err != nil {
		return Spec{}, fmt.Errorf("the guest runs as a %s: %w", typ, err)
	}
	s.RunDir, s.Incoming, s.Paused = runDir, true, true
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		d := &s.Disks[i]
		if filepath.IsAbs(d.Volume) {
			return Spec{}, model.Errorf(model.ErrUnavailable, "%s is the file %s, which is on no storage", d.ID, d.Volume)
		}
		if d.Path, _, err = r.File(ctx, d.Volume); err != nil {
			return Spec{}, fmt.Errorf("%s: %w", d.ID, err)
		}
		d.Direct = d.Direct && r.Direct(d.Path)
	}
	for n, where := range s.Serials {
		if where != "" && where != "socket" {
			return Spec{}, model.Errorf(model.ErrUnavailable, "serial%d is %s, a device of the node it runs on", n, where)
		}
	}
	return s, nil
}
