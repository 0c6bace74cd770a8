//go:build room

package roomtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/sys"
)

// fenceHere runs in a node, as an agent would: it asks or shoots by the ha/fence.cfg on the standard input and
// prints the outcome as JSON.
func fenceHere(what, node, password string) int {
	err := func() error {
		text, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		cfg, err := pveconf.ParseFence(text)
		if err != nil {
			return err
		}
		set := fence.Build(cfg, fence.Node{Name: node}, fence.Env{
			Secret: func(string) (string, error) { return password, nil }, Now: sys.BootTime, Wall: time.Now,
		})
		defer set.Close()
		signs := func() []core.Sign { return nil }
		var out fence.Outcome
		if what == "shoot" {
			out = set.Shoot(context.Background(), sys.BootTime(), signs, nil)
		} else {
			out = set.Ask(context.Background(), signs)
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// fenceFrom runs fenceHere in a node of w, with methods of one type; program is this test's own on the NAS.
func fenceFrom(t *testing.T, w *world, program, typ, from, what, node string) fence.Outcome {
	t.Helper()
	cfg, err := w.FenceConfig(t.Context(), typ)
	if err != nil {
		t.Fatal(err)
	}
	password := statusOf(t, w, node).BMC.Password
	cmd := w.Exec(t.Context(), from, program, "fence", what, node, password)
	cmd.Stdin = strings.NewReader(cfg)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s from %s: %v", what, node, from, err)
	}
	var out fence.Outcome
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

func statusOf(t *testing.T, w *world, node string) lab.NodeStatus {
	t.Helper()
	st, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Node == node {
			return n
		}
	}
	t.Fatalf("no node %s", node)
	return lab.NodeStatus{}
}

func TestANodeShotByItsBMCFromAnotherNodeHasNoProcessLeft(t *testing.T) {
	for _, typ := range []string{pveconf.FenceRedfish, pveconf.FenceIPMI} {
		t.Run(typ, func(t *testing.T) { shootFromAnother(t, typ) })
	}
}

func shootFromAnother(t *testing.T, typ string) {
	w, err := raise(t.Context(), "f-"+typ, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(w.NAS(), "test"), self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	const program = "/srv/nas/test"
	pids := statusOf(t, w, "n2").PIDs
	if len(pids) < 3 {
		t.Fatalf("n2 runs %d processes, not even init, guard and agent", len(pids))
	}
	if got := fenceFrom(t, w, program, typ, "n1", "ask", "n2"); got.Proof != nil {
		t.Errorf("a node that runs: %+v", got)
	}
	start := time.Now()
	got := fenceFrom(t, w, program, typ, "n1", "shoot", "n2")
	t.Logf("shot and verified in %v, with the start of the program %v", got.Said[0].Took, time.Since(start))
	if got.Proof == nil || got.Proof.Node != "n2" {
		t.Fatalf("%+v", got)
	}
	for _, pid := range pids {
		if _, err := sys.ProcessStart(pid); err == nil {
			t.Errorf("process %d of n2 is there after the proof", pid)
		}
	}
	if st := statusOf(t, w, "n2"); st.Power != lab.StateOff || len(st.PIDs) != 0 {
		t.Errorf("n2 is %s, processes %v", st.Power, st.PIDs)
	}
	for _, n := range []string{"n1", "n3"} {
		if st := statusOf(t, w, n); st.Power != lab.StateOn || st.Boots != 1 {
			t.Errorf("%s is %s, boots %d", n, st.Power, st.Boots)
		}
	}
	// The node may be cut off from everything: its BMC is not.
	if _, err := w.Power(t.Context(), "n2", lab.PowerOn); err != nil {
		t.Fatal(err)
	}
	if err := w.Link(t.Context(), "n2", lab.AllNetworks, false); err != nil {
		t.Fatal(err)
	}
	if got := fenceFrom(t, w, program, typ, "n3", "shoot", "n2"); got.Proof == nil {
		t.Errorf("without its cables: %+v", got)
	}
	if got := fenceFrom(t, w, program, typ, "n1", "ask", "n2"); got.Proof == nil {
		t.Errorf("asked when it was off: %+v", got)
	}
}
