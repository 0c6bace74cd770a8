package qemu

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

// node2 finds the same volumes as node1 at another place, where O_DIRECT does not work.
type node2 struct{ node1 }

func (node2) File(ctx context.Context, volid string) (string, storage.Format, error) {
	path, f, err := node1{}.File(ctx, volid)
	return strings.Replace(path, "/srv/nas", "/mnt/fuse", 1), f, err
}

func running(t *testing.T) Spec {
	t.Helper()
	s, err := fromText(t, `cores: 2
machine: pc-i440fx-9.2
memory: 256
net0: virtio=bc:24:11:00:00:01,bridge=vmbr0
serial1: socket
virtio0: nas:100/vm-100-disk-0.raw
`)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestARunningGuestArrivesAsItRuns(t *testing.T) {
	s := running(t)
	got, err := Relocate(t.Context(), s, "/run/two", KVM, node2{})
	if err != nil {
		t.Fatal(err)
	}
	want := running(t)
	want.RunDir, want.Incoming, want.Paused = "/run/two", true, true
	want.Disks[0].Path, want.Disks[0].Direct = "/mnt/fuse/images/100/vm-100-disk-0.raw", false
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(running(t), s); diff != "" {
		t.Errorf("the source's own was changed: %s", diff)
	}
}

func TestWhatTiesARunningGuestToItsNodeIsNamed(t *testing.T) {
	for want, change := range map[string]func(*Spec){
		"kvm: the guest runs with KVM, which does not work there":                           func(s *Spec) { s.Accel = KVM },
		"virtio0 is the file /dev/sdb, which is on no storage":                              func(s *Spec) { s.Disks[0].Volume = "/dev/sdb" },
		"virtio0: volume local:100/x.raw does not exist":                                    func(s *Spec) { s.Disks[0].Volume = "local:100/x.raw" },
		"serial1 is /dev/ttyS0, a device of the node it runs on":                            func(s *Spec) { s.Serials[1] = "/dev/ttyS0" },
		"the guest runs as a pc-i440fx-11.0: machine: this node's QEMU has no machine type": func(s *Spec) { s.Machine = "pc-i440fx-11.0" },
	} {
		s := running(t)
		change(&s)
		_, err := Relocate(t.Context(), s, "/run/two", TCG, node1{})
		known := errors.Is(err, model.ErrUnavailable) || errors.Is(err, model.ErrNotFound) || errors.Is(err, model.ErrInvalid)
		if err == nil || !known || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
