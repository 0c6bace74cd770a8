package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
	"sauh.dev/sauh/internal/sys"
)

func TestANodeIsAMachineOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 2)
	for line, want := range map[string]string{
		"hostname":                                                "n1",
		"grep ^0: /proc/1/cgroup":                                 "0::/init.scope",
		"grep ^0: /proc/self/cgroup":                              "0::/user.slice",
		"ps -e -o comm= | sort":                                   "ps\nsauh\nsh\nsleep\nsort",
		"ls /sys/class/net":                                       "eth0\neth1\nlo\nvmbr0",
		"cat /etc/hostname":                                       "n1",
		"ls -A /tmp /var/lib/sauh":                                "/tmp:\n\n/var/lib/sauh:",
		"ip -br addr show vmbr0 | awk '{print $3}'":               "10.10.1.1/24",
		"ip -br addr show eth1 | awk '{print $3}'":                "10.10.2.1/24",
		"cat /sys/class/net/vmbr0/bridge/forward_delay":           "0",
		"cat /proc/sys/net/mptcp/enabled":                         "1",
		"sauh helper realtime && echo allowed":                    "allowed",
		"test -c /dev/net/tun && test -w /dev/null && echo there": "there",
		"tr -d ' \\n' < /etc/sauh/agent.json":                     `{"node":"n1","mgmt":"10.10.1.1","cluster":"10.10.2.1","bridge":"vmbr0"}`,
	} {
		if diff := cmp.Diff(want, sh(t, r, "n1", line)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
	}
	sh(t, r, "n1", "echo x > /srv/nas/f && echo y > /root/f && echo z > /tmp/f")
	if got := sh(t, r, "n2", "cat /srv/nas/f; ls /root/f /tmp/f 2>/dev/null | wc -l"); got != "x\n0" {
		t.Errorf("n2 sees %q: the NAS is shared, nothing else", got)
	}
	if _, err := os.Stat(filepath.Join(r.NAS(), "f")); err != nil {
		t.Error(err)
	}
	if got, want := sh(t, r, "n1", "cat /proc/sys/kernel/random/boot_id"), nodeStatus(t, r, "n1").BootID; got != want {
		t.Errorf("boot id %q, the room says %q", got, want)
	}
	if a, b := sh(t, r, "n1", "readlink /proc/self/ns/net"), sh(t, r, "n2", "readlink /proc/self/ns/net"); a == b {
		t.Error("two nodes in one network namespace")
	}
}

func TestNodesReachOneAnotherUntilALinkIsDown(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 2)
	both := func() [2]bool { return [2]bool{reaches(t, r, "n1", "10.10.1.2"), reaches(t, r, "n1", "10.10.2.2")} }
	check := func(what string, want [2]bool) {
		t.Helper()
		if got := both(); got != want {
			t.Errorf("%s: mgmt and cluster reachable %v, want %v", what, got, want)
		}
	}
	check("at first", [2]bool{true, true})
	link := func(n Network, up bool) {
		t.Helper()
		if err := r.Link(t.Context(), "n2", n, up); err != nil {
			t.Fatal(err)
		}
	}
	link(Mgmt, false)
	check("mgmt down", [2]bool{false, true})
	if got := sh(t, r, "n2", "cat /sys/class/net/eth0/carrier"); got != "0" {
		t.Errorf("n2's card sees carrier %s", got)
	}
	if n := nodeStatus(t, r, "n2"); n.Mgmt || !n.Cluster {
		t.Errorf("status says %+v", n)
	}
	power(t, r, "n2", PowerCycle)
	check("mgmt down, after a power cycle", [2]bool{false, true})
	link(AllNetworks, false)
	check("all down", [2]bool{false, false})
	link(AllNetworks, true)
	// n1 may still wait for an answer to an ARP request that nobody heard.
	waitFor(t, "all up", func() bool { return both() == [2]bool{true, true} })
}

func TestPartitionsDropBetweenGroupsUntilHealed(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 3)
	partition := func(p Partition) {
		t.Helper()
		if err := r.Partition(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	partition(Partition{Groups: [][]string{{"n1"}, {"n2"}}, Network: Cluster})
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"n1", "10.10.2.2", false},
		{"n2", "10.10.2.1", false},
		{"n1", "10.10.1.2", true},
		{"n1", "10.10.2.3", true},
		{"n3", "10.10.2.2", true},
	} {
		if got := reaches(t, r, c.from, c.to); got != c.want {
			t.Errorf("cluster partition: %s reaches %s: %v", c.from, c.to, got)
		}
	}
	partition(Partition{Groups: [][]string{{"n1"}, {"n2", "n3"}}})
	if reaches(t, r, "n1", "10.10.1.3") || reaches(t, r, "n2", "10.10.1.1") || !reaches(t, r, "n2", "10.10.1.3") {
		t.Error("partition n1 n2,n3 drops the wrong packets")
	}
	for i := range 3 {
		if !reaches(t, r, RoomName, MgmtAddress(i+1)) {
			t.Errorf("the room does not reach n%d", i+1)
		}
	}
	if err := r.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The nodes may still wait for an answer to an ARP request that was dropped.
	waitFor(t, "healed", func() bool { return reaches(t, r, "n1", "10.10.1.3") && reaches(t, r, "n1", "10.10.2.2") })
}

func TestAOneWayPartitionLetsTheOtherDirectionPass(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 2)
	if err := r.Partition(t.Context(), Partition{Groups: [][]string{{"n1"}, {"n2"}}, OneWay: true, Network: Mgmt}); err != nil {
		t.Fatal(err)
	}
	_, _, n1 := start(t, r, "n1", "listen", ":7000")
	_, _, n2 := start(t, r, "n2", "listen", ":7000")
	sh(t, r, "n1", "sauh helper send 10.10.1.2:7000 dropped")
	sh(t, r, "n1", "sauh helper send 10.10.2.2:7000 passes")
	sh(t, r, "n2", "sauh helper send 10.10.1.1:7000 passes")
	for node, out := range map[string]interface{ ReadString(byte) (string, error) }{"n1": n1, "n2": n2} {
		if got, err := out.ReadString('\n'); got != "passes\n" {
			t.Errorf("%s got %q, %v", node, got, err)
		}
	}
}

func TestPowerOffKillsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 2)
	// A frozen process, a daemonized grandchild, and a state file.
	sh(t, r, "n1", `echo kept > /var/lib/sauh/state; sync /var/lib/sauh/state
		mkdir -p /sys/fs/cgroup/sauh/guests/100
		setsid sh -c 'echo $$ > /sys/fs/cgroup/sauh/guests/100/cgroup.procs; exec sleep 4711' >/dev/null 2>&1 &
		setsid sh -c 'setsid sleep 4712 >/dev/null 2>&1 &' >/dev/null 2>&1
		until pgrep -f 'sleep 4711' >/dev/null && pgrep -f 'sleep 4712' >/dev/null; do :; done
		echo 1 > /sys/fs/cgroup/sauh/guests/100/cgroup.freeze
		until grep -q 'frozen 1' /sys/fs/cgroup/sauh/guests/100/cgroup.events; do :; done`)
	before := nodeStatus(t, r, "n1")
	if len(before.PIDs) < 4 {
		t.Fatalf("n1 has only the processes %v", before.PIDs)
	}
	res := power(t, r, "n1", PowerOff)
	if res.Power != StateOff || !res.Changed || res.Killed <= 0 || res.Killed > 5*time.Second {
		t.Errorf("power off: %+v", res)
	}
	t.Logf("%d processes gone after %v", len(before.PIDs), res.Killed)
	for _, pid := range before.PIDs {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d after power off: %v", pid, err)
		}
	}
	off := nodeStatus(t, r, "n1")
	if off.Power != StateOff || len(off.PIDs) != 0 || exists(r.Cgroup("n1")) {
		t.Errorf("after power off: %+v", off)
	}
	if again := power(t, r, "n1", PowerOff); again.Changed {
		t.Errorf("second power off: %+v", again)
	}
	if _, err := r.Exec(t.Context(), "n1", "true").CombinedOutput(); err == nil {
		t.Error("exec works in a node that is off")
	}
	power(t, r, "n1", PowerOn)
	after := nodeStatus(t, r, "n1")
	if after.BootID == before.BootID || after.Boots != 2 || len(after.Resets) != 0 {
		t.Errorf("after power on: %+v", after)
	}
	if got := sh(t, r, "n1", "cat /var/lib/sauh/state; pgrep -c -f '^sleep 471' || true"); got != "kept\n0" {
		t.Errorf("after power on: %q", got)
	}
}

func TestPeersOfANodeWithoutPowerHearNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 1)
	start(t, r, "n1", "serve", ":7000")
	_, in, out := start(t, r, RoomName, "dial", "10.10.1.1:7000")
	power(t, r, "n1", PowerOff)
	_, _ = in.Write([]byte("\n"))
	if got, _ := out.ReadString('\n'); got != "silent\n" {
		t.Errorf("the peer's connection: %q, want silence: no FIN, no RST", got)
	}
}

func TestAWatchdogThatIsNotFedResetsTheNode(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 1)
	want := "Sauh lab watchdog 5s\nboot status 0 <nil>\ntime left true <nil>\n" +
		"option 1 time left false <nil>\noption 2 time left true <nil>"
	if diff := cmp.Diff(want, sh(t, r, "n1", "sauh helper watchdog")); diff != "" {
		t.Errorf("ioctls (-want +got):\n%s", diff)
	}
	if got := nodeStatus(t, r, "n1").Watchdog; got != "off" {
		t.Errorf("after a magic close the watchdog is %q", got)
	}
	before := nodeStatus(t, r, "n1")
	began := time.Now()
	out, err := r.Exec(t.Context(), "n1", "sauh", "helper", "starve").CombinedOutput()
	if code := exitCode(err); code != 137 {
		t.Fatalf("the holder of the watchdog ended with %v: %s", err, out)
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("reset after %v, the timeout is 1 s", took)
	}
	waitFor(t, "booted again", func() bool { return nodeStatus(t, r, "n1").Boots == 2 })
	after := nodeStatus(t, r, "n1")
	if len(after.Resets) != 1 || after.Resets[0].Why != "watchdog: not fed for 1s" || after.BootID == before.BootID {
		t.Errorf("after the reset: %+v", after)
	}
	if got := sh(t, r, "n1", "sauh helper watchdog"); !strings.Contains(got, "boot status 32 ") {
		t.Errorf("the node does not learn why it was reset: %s", got)
	}
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

func TestANodeRebootsItselfAndPowersItselfOff(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 1)
	_ = r.Exec(t.Context(), "n1", "sauh", "helper", "reboot").Run()
	waitFor(t, "booted again", func() bool { return nodeStatus(t, r, "n1").Boots == 2 })
	n := nodeStatus(t, r, "n1")
	if len(n.Resets) != 1 || n.Resets[0].Why != "rebooted itself" || n.Power != StateOn {
		t.Errorf("after a reboot: %+v", n)
	}
	_ = r.Exec(t.Context(), "n1", "sauh", "helper", "poweroff").Run()
	waitFor(t, "off", func() bool { return nodeStatus(t, r, "n1").Power == StateOff })
	if n := nodeStatus(t, r, "n1"); n.Why != "powered itself off" || len(n.Resets) != 1 {
		t.Errorf("after a power off: %+v", n)
	}
}

func TestUnitsRestartAsTheyAreTold(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 1,
		Unit{Name: "always", Argv: []string{"sh", "-c", "echo began; sleep 5000 & sleep 0.1"}, Restart: true},
		Unit{Name: "once", Argv: []string{"sh", "-c", "echo began; exit 3"}},
		Unit{Name: "keeps", Argv: []string{"sh", "-c", "sleep 5001 & exit 0"}, KeepRest: true},
		Unit{Name: "clears", Argv: []string{"sh", "-c", "sleep 5002 & exit 0"}},
	)
	began := func(unit string) int {
		text, _ := os.ReadFile(filepath.Join(r.Log("n1"), unit+".log"))
		return strings.Count(string(text), "began")
	}
	waitFor(t, "two restarts", func() bool { return began("always") >= 3 })
	if n := began("once"); n != 1 {
		t.Errorf("a unit without restart began %d times", n)
	}
	if got := sh(t, r, "n1", "pgrep -x -a -f 'sleep 500[12]' | cut -d' ' -f3"); got != "5001" {
		t.Errorf("of what the units left behind lives %q, want only that of the one with KeepRest", got)
	}
	if got := sh(t, r, "n1", "pgrep -c -x -f 'sleep 5000' || true"); got != "0" && got != "1" {
		t.Errorf("%s leftovers of the unit's earlier lives", got)
	}
}

func TestExecPassesStreamsAndStatus(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 1)
	for _, node := range []string{"n1", RoomName} {
		cmd := r.Exec(t.Context(), node, "sh", "-c", "cat; echo err >&2; exit 7")
		var errOut strings.Builder
		cmd.Stdin, cmd.Stderr = strings.NewReader("in"), &errOut
		out, err := cmd.Output()
		if string(out) != "in" || errOut.String() != "err\n" || exitCode(err) != 7 {
			t.Errorf("%s: %q, %q, %v", node, out, errOut.String(), err)
		}
	}
	if err := r.Exec(t.Context(), "n1", "no-such-program").Run(); exitCode(err) != 127 {
		t.Errorf("no such program: %v", err)
	}
	if err := r.Exec(t.Context(), "n1", "sh", "-c", "kill -9 $$").Run(); exitCode(err) != 137 {
		t.Errorf("killed: %v", err)
	}
	out, err := r.Exec(t.Context(), "n7", "true").CombinedOutput()
	if exitCode(err) != 1 || !strings.Contains(string(out), `has no node "n7"`) {
		t.Errorf("no such node: %v, %s", err, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := r.Exec(ctx, "n1", "sleep", "4713")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	count := func() string { return sh(t, r, "n1", "pgrep -c -x -f 'sleep 4713' || true") }
	waitFor(t, "started", func() bool { return count() == "1" })
	cancel()
	_ = cmd.Wait()
	if got := count(); got != "0" {
		t.Error("a cancelled program runs on in the node")
	}
}

// hostState is what a room must not change on the host.
type hostState struct {
	Mounts, Links string
	Cgroups       []string
}

func observeHost(t *testing.T, name string) hostState {
	t.Helper()
	var h hostState
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	h.Mounts = string(mounts)
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		h.Links += l.Name() + " "
	}
	root, err := sys.Cgroup2Root()
	if err != nil {
		t.Fatal(err)
	}
	h.Cgroups, err = filepath.Glob(filepath.Join(root, cgroupName(name)+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// processesOf lists the processes that run the room's copy of sauh.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && strings.HasPrefix(target, binaryPath(dir)) {
			found = append(found, exe)
		}
	}
	return found
}

func TestDownLeavesNothingBehind(t *testing.T) {
	for what, crash := range map[string]bool{"InGoodOrder": false, "AfterTheSupervisorWasKilled": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := roomConfig(t, 2)
			before := observeHost(t, c.Name)
			r, err := Up(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			st, err := r.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			bmcs, err := sys.CgroupProcesses(filepath.Join(r.Cgroup(RoomName), "bmc"))
			if _, missing := exec.LookPath(bmc.IPMISimProgram); missing == nil && (err != nil || len(bmcs) != 2) {
				t.Errorf("the processes %v are BMCs of two nodes: %v", bmcs, err)
			}
			during := observeHost(t, c.Name)
			if during.Mounts != before.Mounts || during.Links != before.Links || len(during.Cgroups) != 1 {
				t.Errorf("the host with a room: %+v", during)
			}
			if crash {
				if err := unix.Kill(st.PID, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "crashed", func() bool { _, err := r.Status(t.Context()); return err != nil })
				if _, err := Open(t.Context(), c.Name); !errors.Is(err, model.ErrUnavailable) {
					t.Errorf("open a crashed room: %v", err)
				}
				if _, err := Up(t.Context(), c); !errors.Is(err, model.ErrExists) {
					t.Errorf("up on a crashed room: %v", err)
				}
			}
			removed, err := r.Down(t.Context(), false)
			if err != nil || len(removed) != 3 {
				t.Errorf("down: %q, %v", removed, err)
			}
			if diff := cmp.Diff(before, observeHost(t, c.Name)); diff != "" {
				t.Errorf("the host afterwards (-before +after):\n%s", diff)
			}
			if left := processesOf(t, c.Dir); len(left) > 0 {
				t.Errorf("processes left: %v", left)
			}
			for _, pid := range bmcs {
				if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
					t.Errorf("BMC %d is left: %v", pid, err)
				}
			}
			for _, path := range []string{c.Dir, pointerPath(c.Name)} {
				if exists(path) {
					t.Errorf("%s is left", path)
				}
			}
			if again, err := Down(t.Context(), c.Name, false); err != nil || len(again) != 0 {
				t.Errorf("second down: %q, %v", again, err)
			}
		})
	}
}

func TestARoomComesBackWithItsData(t *testing.T) {
	t.Parallel()
	c := roomConfig(t, 1)
	for round := range 2 {
		r, err := Up(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		got := sh(t, r, "n1", "cat /var/lib/sauh/round; echo kept > /var/lib/sauh/round")
		if round == 1 && got != "kept" {
			t.Errorf("state after down --keep-data: %q", got)
		}
		if _, err := r.Down(t.Context(), round == 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(c.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory after down: %v", err)
	}
}

func TestUpRefusesAndChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 1)
	good := roomConfig(t, 1)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(*Config)
		kind   error
		says   string
	}{
		"a room of that name": {func(c *Config) { c.Name = r.Name() }, model.ErrExists, "already exists"},
		"a bad name":          {func(c *Config) { c.Name = "../x" }, model.ErrInvalid, "cannot name a room"},
		"no nodes":            {func(c *Config) { c.Nodes = -1 }, model.ErrInvalid, "1 to 32 nodes"},
		"too many nodes":      {func(c *Config) { c.Nodes = 33 }, model.ErrInvalid, "1 to 32 nodes"},
		"a full directory":    {func(c *Config) { c.Dir = full }, model.ErrInvalid, "is not empty"},
		"a long directory":    {func(c *Config) { c.Dir += strings.Repeat("x", 100) }, model.ErrInvalid, "too long"},
		"no such binary":      {func(c *Config) { c.Binary = "/nonexistent" }, model.ErrInvalid, "is not a program"},
		"a binary of its own": {func(c *Config) { c.Binary = "/bin/false" }, nil, "the supervisor ended"},
		"a missing unit": {func(c *Config) {
			c.Units = []Unit{{Name: "x", Argv: []string{"no-such-program"}}}
		}, nil, "boot n1: start x"},
		"a unit named twice": {func(c *Config) { c.Units = append(c.Units, c.Units...) }, model.ErrInvalid, "named twice"},
	} {
		conf := good
		c.change(&conf)
		_, err := Up(t.Context(), conf)
		if err == nil || !strings.Contains(err.Error(), c.says) || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", what, err)
		}
		if exists(good.Dir) || len(observeHost(t, good.Name).Cgroups) != 0 || exists(pointerPath(good.Name)) {
			t.Errorf("%s: something is left behind", what)
		}
	}
	if !exists(filepath.Join(full, "precious")) {
		t.Error("a directory that is no room's was emptied")
	}
	if n := nodeStatus(t, r, "n1"); n.Power != StateOn {
		t.Errorf("the other room suffered: %+v", n)
	}
}

func TestWrongNamesChangeNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 2)
	ctx := t.Context()
	_, powerErr := r.Power(ctx, "n1", "explode")
	_, nodeErr := r.Power(ctx, "n9", PowerOff)
	for what, err := range map[string]error{
		"power action":  powerErr,
		"node":          nodeErr,
		"link's node":   r.Link(ctx, "n9", Mgmt, false),
		"link":          r.Link(ctx, "n1", "wifi", false),
		"one group":     r.Partition(ctx, Partition{Groups: [][]string{{"n1"}}}),
		"unknown node":  r.Partition(ctx, Partition{Groups: [][]string{{"n1"}, {"n9"}}}),
		"node twice":    r.Partition(ctx, Partition{Groups: [][]string{{"n1"}, {"n2", "n1"}}}),
		"empty group":   r.Partition(ctx, Partition{Groups: [][]string{{"n1"}, {}}}),
		"wrong network": r.Partition(ctx, Partition{Groups: [][]string{{"n1"}, {"n2"}}, Network: "wifi"}),
	} {
		if !errors.Is(err, model.ErrInvalid) && !errors.Is(err, model.ErrNotFound) {
			t.Errorf("wrong %s: %v", what, err)
		}
	}
	st, err := r.Status(ctx)
	if err != nil || len(st.Drops) != 0 || !st.Nodes[0].Mgmt || st.Nodes[0].Power != StateOn {
		t.Errorf("something changed: %+v, %v", st, err)
	}
	if _, err := Open(ctx, "no-such-room"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("open a room that is not there: %v", err)
	}
}
