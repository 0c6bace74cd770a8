//go:build room

package roomtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/sys"
)

func TestARoomLeavesNothingBehindAlsoAfterACrash(t *testing.T) {
	sauh, err := binary("SAUH_BIN", "sauh")
	if err != nil {
		t.Fatal(err)
	}
	for kind, crash := range map[string]bool{"down": false, "crash": true} {
		before := hostThings(t)
		r := fresh(t, kind, 1)
		r.Must("n1", "cluster create lonely")
		r.Must("n1", "storage add dir nas --path /srv/nas --shared --late-writes no")
		r.Eventually("n1 can start a guest", patience, func() error { return r.asError("n1", "vm create 100 --memory 64 --start") })
		r.Must("n1", "ha add vm:100")
		if now := hostThings(t); cmp.Equal(before, now) {
			t.Fatal("a room with a guest is not to be seen on the host at all: this test looks in the wrong places")
		}
		st, err := r.world.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bmcs, err := sys.CgroupProcesses(filepath.Join(r.world.Cgroup(lab.RoomName), "bmc"))
		if err != nil || len(bmcs) != 1 {
			t.Errorf("the processes %v are the BMC of one node, %v: install the package openipmi (make setup)", bmcs, err)
		}
		pids := slices.Concat(st.Nodes[0].PIDs, bmcs, []int{st.PID})
		if crash {
			if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.CommandContext(t.Context(), sauh, "lab", "down", "--name", r.Name()).CombinedOutput()
		if err != nil {
			t.Fatalf("lab down: %v\n%s", err, out)
		}
		for _, pid := range pids {
			if alive(pid) {
				t.Errorf("process %d is still there", pid)
			}
		}
		if diff := cmp.Diff(before, hostThings(t)); diff != "" {
			t.Errorf("crash %v: left behind (-before +after):\n%s", crash, diff)
		}
	}
}

// asError is the refusal of a command line, or nil.
func (r *room) asError(node, line string) error {
	if a := r.Sauh(node, line); a.code != 0 {
		return fmt.Errorf("%s", a)
	}
	return nil
}

// alive is false for a process that has ended, also if its parent has not asked for its status yet: the room's is this test.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(after, "Z")
}

// hostThings lists what a room of this process could leave on the host: processes, mounts, cgroups, files, interfaces.
func hostThings(t *testing.T) []string {
	t.Helper()
	mine := fmt.Sprintf("%s%d-", roomPrefix, os.Getpid())
	var out []string
	add := func(kind string, names ...string) {
		for _, n := range names {
			if strings.Contains(n, mine) && !strings.Contains(n, mine+"room") {
				out = append(out, kind+" "+n)
			}
		}
	}
	for _, pattern := range []string{"/run/sauh-lab/*", "/var/lib/sauh-lab/*", "/sys/fs/cgroup/*", "/sys/fs/cgroup/unified/*", "/run/netns/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		add("file", files...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	add("mount", strings.Split(string(mounts), "\n")...)
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range groups {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if text, err := os.ReadFile(f); err == nil && alive(pid) {
			add("process", f+" "+string(text))
		}
	}
	links, err := filepath.Glob("/sys/class/net/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links { // whatever their names: colleagues' rooms have theirs in namespaces too
		out = append(out, "interface "+filepath.Base(l))
	}
	slices.Sort(out)
	return out
}
