//go:build room

package roomtest

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/lab/image"
)

// Kill kills the guest's QEMU.
func (g *guest) Kill() time.Time {
	g.r.t.Helper()
	p := g.QEMU()
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
		g.r.t.Fatal(err)
	}
	g.r.t.Logf("%s: QEMU of guest %d on %s killed", clock(), g.id, p.node)
	return time.Now()
}

func TestGuestsRunOnWithoutTheirAgentAndAreAdopted(t *testing.T) {
	r := open(t)
	free, protected := r.Guest(101).On("n2"), r.Guest(100).On("n2").Protected()
	before := map[*guest]process{free: free.QEMU(), protected: protected.QEMU()}
	e, l := free.Echo(), protected.Ledger()
	since := r.Signal("n2", agentUnit, syscall.SIGKILL)
	back := r.Logged("n2", initUnit, since, "sauh-agent started")
	for g := range before {
		adopted := r.Logged("n2", agentUnit, since, "guest adopted", "vmid="+g.id.String())
		t.Logf("guest %d was adopted %v after the agent was started again", g.id, adopted.Sub(back).Round(time.Millisecond))
		if adopted.Sub(back) > 2*time.Second {
			t.Errorf("guest %d was adopted only %v after the agent's return", g.id, adopted.Sub(back))
		}
		g.MustBe("running", "n2", patience)
	}
	r.AllWell()
	for g, p := range before {
		if now := g.QEMU(); now.pid != p.pid || !now.frozenAt.IsZero() {
			t.Errorf("guest %d had the process %v and has %v", g.id, &p, &now)
		}
	}
	if gap := longestGap(e, since); gap > time.Second {
		t.Errorf("the guest was silent for %v", gap)
	}
	l.MustBeWhole()
}

func TestTheEndOfAQEMUIsNoticedWithinASecond(t *testing.T) {
	r := open(t)
	g := r.Guest(101).On("n1")
	since := g.Kill()
	took := r.Eventually("guest 101 is listed as stopped", time.Second, func() error {
		row, err := g.FindAt("n1")
		if err == nil && row.Status != "stopped" {
			err = fmt.Errorf("it is %s", row.Status)
		}
		return err
	})
	t.Logf("noticed after %v", took.Round(time.Millisecond))
	if ps := g.Processes(since.Add(samplePace)); len(ps) != 0 {
		t.Errorf("processes after the kill: %v", ps)
	}
	r.Refused("n3", "vm stop 101", "101 not running")
}

func TestAGuestIsMadeStartedShutDownStoppedAndDestroyed(t *testing.T) {
	r := open(t)
	g := r.Guest(110)
	file := g.disk(image.Config{})
	created := r.Must("n2", "vm create 110 --name life --memory 256 --virtio0 nas:0,import-from="+file+" --net0 virtio,bridge=vmbr0 --serial0 socket")
	if !strings.Contains(created.out, "guest 110 created on node n2") {
		t.Errorf("vm create prints %q", created.out)
	}
	g.MustBe("stopped", "n2", 5*time.Second)
	r.Refused("n1", "vm console 110 --for 1s", "110")
	r.Must("n1", "vm start 110") // from another node
	g.MustBe("running", "n2", time.Second)
	r.Refused("n3", "vm start 110", "VM 110 already running")
	r.Refused("n3", "vm destroy 110", "VM 110 is running")
	g.MustAnswer(patience)
	g.mustSpeakOnItsConsole()

	since := time.Now()
	r.Must("n3", "vm shutdown 110 --timeout 30s") // the power button
	t.Logf("shut down in %v", time.Since(since).Round(time.Millisecond))
	g.MustBe("stopped", "n2", time.Second)
	r.Refused("n1", "vm shutdown 110", "VM 110 not running")
	r.Refused("n1", "vm stop 110", "VM 110 not running")

	r.Must("n1", "vm start 110")
	r.Must("n1", "vm stop 110")
	g.MustBe("stopped", "n2", time.Second)
	if left := g.leftOn("n2"); left != "" {
		t.Errorf("after the stop n2 has %q", left)
	}
	if out := r.Must("n1", "storage content nas").out; !strings.Contains(out, "nas:110/vm-110-disk-0.raw") {
		t.Errorf("its disk is not listed:\n%s", out)
	}
	r.Must("n3", "vm destroy 110")
	r.Refused("n1", "vm status 110", "110", "does not exist")
	if out := r.Must("n1", "storage content nas").out; strings.Contains(out, "nas:110/") {
		t.Errorf("its disk is still there:\n%s", out)
	}
}

// mustSpeakOnItsConsole asks the guest's serial port for its state, from another node.
func (g *guest) mustSpeakOnItsConsole() {
	g.r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	port, err := g.r.API("n3").Console(ctx, g.owner(), g.id)
	if err != nil {
		g.r.t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { _ = port.Close() })()
	if _, err := port.Write([]byte("status\r")); err != nil {
		g.r.t.Fatal(err)
	}
	in := bufio.NewScanner(port)
	for in.Scan() {
		if strings.Contains(in.Text(), g.ip+", up ") {
			_ = port.Close()
			return
		}
	}
	g.r.t.Errorf("the console of guest %d ended without an answer: %v", g.id, in.Err())
}

// owner is the node whose guest it is.
func (g *guest) owner() string {
	g.r.t.Helper()
	row, err := g.Find()
	if err != nil {
		g.r.t.Fatal(err)
	}
	return row.Node
}
