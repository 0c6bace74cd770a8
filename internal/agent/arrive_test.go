package agent

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/sys"
)

// runsAs gives the guest a process on this node that was started with spec; it only sleeps.
func (n *node) runsAs(spec qemu.Spec) {
	n.t.Helper()
	sleep := exec.Command("sleep", "600")
	must(n.t, sleep.Start())
	n.t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	facts := qemu.Facts{PID: sleep.Process.Pid, BootID: n.a.boot, Cgroup: n.paths.cgroupOf(spec.VMID.String()), Started: time.Now()}
	var err error
	facts.StartTicks, err = sys.ProcessStart(facts.PID)
	must(n.t, err)
	state := map[string]any{"spec": spec, "facts": facts}
	must(n.t, os.WriteFile(filepath.Join(n.paths.qemuRun(), spec.VMID.String()+".json"), mustJSON(state), 0o600))
	if !n.m.procs.adopt(n.t.Context(), spec.VMID) || n.m.procs.get(spec.VMID) == nil {
		n.t.Fatal("the process was not adopted")
	}
}

// aRunningGuest is what the QEMU of guest 100 was started with, and runs with whatever became of its file.
func aRunningGuest(disks ...qemu.Disk) qemu.Spec {
	return qemu.Spec{
		VMID: 100, Name: "web", Accel: qemu.TCG, Machine: "pc-i440fx-10.0", CPU: "qemu64", Sockets: 1, Cores: 2, MemoryMiB: 48,
		Serials: []string{"socket"}, Disks: disks,
	}
}

// What the file says is for the next start: its memory is more than anybody has, and its disk and its bridge are nowhere.
func TestAGuestArrivesAsItRunsAndNotAsItsFileSays(t *testing.T) {
	n, _, _ := startNode(t)
	bin := filepath.Dir(must1(exec.LookPath(qemu.Binary))(t))
	program := "#!/bin/sh\nif [ \"$1\" = -machine ]; then echo 'pc-i440fx-10.0 PC'; exit 0; fi\necho \"$@\" >" + bin + "/args\nexit 1\n"
	must(t, os.WriteFile(filepath.Join(bin, qemu.Binary), []byte(program), 0o700))
	n.storage("nas", "\tshared 1\n\tlate-writes no\n")
	volume := n.allocate("nas", 100)
	file := []byte("memory: 16777216\nvirtio3: nas:100/vm-100-gone.raw\nnet0: virtio=BC:24:11:00:00:01,bridge=nowhere\n")
	runs := aRunningGuest(qemu.Disk{ID: "virtio0", Volume: volume, Path: "/elsewhere", Format: "raw", WError: "stop", RError: "stop"})
	n.leased(1)

	_, err := n.m.arrivals.check(t.Context(), "n2", checkRequest{VMID: 100, Config: file, Running: true, Machine: mustJSON(runs)})
	must(t, err)
	_, err = n.m.arrivals.startIncoming(t.Context(), move.StartRequest{VMID: 100, Config: file, Machine: mustJSON(runs)})
	if err == nil {
		t.Fatal("the program that only writes its arguments down became a guest")
	}
	args, err := os.ReadFile(filepath.Join(bin, "args"))
	must(t, err)
	path, _, err := must1(n.m.starter.storages.driver("nas"))(t).File(t.Context(), volume)
	must(t, err)
	for _, want := range []string{"size=48M", "cpus=2,", path, "-incoming defer", "-S"} {
		if !strings.Contains(string(args), want) {
			t.Errorf("QEMU was started without %s: %s", want, args)
		}
	}
}

func TestATargetNamesWhatItCannotOfferARunningGuest(t *testing.T) {
	n, _, _ := startNode(t)
	n.leased(1)
	refuse := "node n1 cannot take guest 100: "
	for want, change := range map[string]func(*qemu.Spec){
		"the guest runs as a q35: machine: this node's QEMU has no machine type": func(s *qemu.Spec) { s.Machine = "q35" },
		"virtio0: storage 'nas' does not exist":                                  func(s *qemu.Spec) { s.Disks = []qemu.Disk{{ID: "virtio0", Volume: "nas:100/x.raw"}} },
		"net2: bridge 'nowhere' does not exist on node n1":                       func(s *qemu.Spec) { s.NICs = []qemu.NIC{{ID: "net2", Bridge: "nowhere"}} },
		"it has ": func(s *qemu.Spec) { s.MemoryMiB = 1 << 40 },
		"the source does not say what guest 100 ": func(s *qemu.Spec) { s.VMID = 101 },
	} {
		runs := aRunningGuest()
		change(&runs)
		_, err := n.m.arrivals.check(t.Context(), "n2", checkRequest{VMID: 100, Running: true, Machine: mustJSON(runs)})
		if err == nil || !strings.HasPrefix(err.Error(), refuse+want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

func TestADiskThatOnlyTheProcessHasTiesAGuestToItsNode(t *testing.T) {
	n, _, _ := startNode(t)
	n.storage("here", "")
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2})))
	n.runsAs(aRunningGuest(qemu.Disk{ID: "virtio1", Volume: "here:100/vm-100-disk-1.raw"}))
	err := n.run(n.m.roles.Guests.Migrate(t.Context(), 100, "n2", true))
	refused(t, err, model.ErrBusy, "guest 100 cannot move: virtio1 is on storage here, which is not shared")
}

func TestAGuardIsToldOfTheStoragesThatTheProcessWritesTo(t *testing.T) {
	n, g, _ := startNode(t)
	n.storage("nas", "\tshared 1\n\tlate-writes yes\n")
	n.runsAs(aRunningGuest(qemu.Disk{ID: "virtio1", Volume: "nas:100/vm-100-disk-1.raw"}))
	n.leased(1)
	must(t, n.m.arrivals.protectIncoming(t.Context(), 100)) // its file names no disk any more
	calls := g.calls("protect")
	if len(calls) != 1 || calls[0].Group.OnDeadline != lease.ResetMachine || len(calls[0].Group.Pills) != 1 {
		t.Errorf("the guard was asked %s", must1(json.Marshal(calls))(t))
	}
}

func TestTheStatusOfARunningGuestIsWhatRuns(t *testing.T) {
	n, _, _ := startNode(t)
	n.put(model.GuestConfigKey("n1", 100), "memory: 300\ncores: 8\n")
	n.runsAs(aRunningGuest())
	row, err := n.m.roles.Guests.Get(t.Context(), 100)
	must(t, err)
	if row.MemoryMiB != 48 || row.CPUs != 2 {
		t.Errorf("the guest is shown with %d MiB and %d CPUs", row.MemoryMiB, row.CPUs)
	}
}
