package qemu

import (
	"path/filepath"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// The image's lock goes with the guest: both processes have it open, and only
// the one that runs holds it.
func TestAGuestMovesBetweenTwoProcessesWithOneImage(t *testing.T) {
	b := newBench(t)
	source := b.start(t, b.spec(100))
	if err := source.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	there := b
	there.runDir = t.TempDir()
	if len(there.runDir) > 80 {
		t.Skip("needs a temporary directory with a short name")
	}
	spec := there.spec(100)
	spec.Incoming = true
	group := filepath.Join(b.cgroup, "target")
	if err := sys.Cgroup(group).Create(); err != nil {
		t.Fatal(err)
	}
	target, err := Start(t.Context(), spec, group)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	uri := map[string]any{"uri": "unix:" + filepath.Join(b.runDir, "move")}
	if err := target.Execute(t.Context(), "migrate-incoming", uri, nil); err != nil {
		t.Fatal(err)
	}
	if err := source.Execute(t.Context(), "migrate", uri, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the source has sent everything", func() bool {
		s, err := source.Status(t.Context())
		return err == nil && s.Status == "postmigrate"
	})
	eventually(t, 5*time.Second, "the target has received everything and waits", func() bool {
		s, err := target.Status(t.Context())
		return err == nil && !s.Running && s.Status != "inmigrate"
	})
	if err := target.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := source.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := target.Status(t.Context()); err != nil || !s.Running {
		t.Errorf("status of the target %+v, %v", s, err)
	}
	_, err = Start(t.Context(), b.spec(101), b.group(101))
	wantKind(t, err, model.ErrBusy, "in use")
}
