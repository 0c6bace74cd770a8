//go:build room

package roomtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/sys"
)

// Times that the tests hold the product to; core/lease says why they are so.
const (
	leaseTime    = 10 * time.Second
	freezeMargin = time.Second
	watchdogTime = 5 * time.Second
)

// patience is for what has to come but promises no time: it is long, because the machine may be busy.
const patience = 60 * time.Second

// room is the machine room as one test sees it. Its methods end the test when they fail.
type room struct {
	*world
	t       *testing.T
	began   time.Time
	stopped []int // processes under SIGSTOP
}

// nodes are the nodes of the shared room.
func nodes() []string { return []string{"n1", "n2", "n3"} }

// open gives the test the shared room: three nodes in a cluster, all well, with the storage "nas".
// At the end of the test everything is plugged in and switched on again.
func open(t *testing.T) *room {
	t.Helper()
	fresh := false
	shared.once.Do(func() {
		fresh = true
		shared.world, shared.err = raise(context.Background(), "room", len(nodes()))
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	r := enter(t, shared.world)
	if fresh {
		shared.err = errors.New("the room could not be built, see the first test")
		r.BuildCluster() // ends the test if it fails
		shared.err = nil
	}
	t.Cleanup(func() {
		r.Repair()
		for _, v := range r.sampler.violationsSince(r.began) {
			t.Error("two QEMUs of one guest ran at once:", v)
		}
	})
	r.AllWell()
	r.began = time.Now()
	return r
}

// enter lets a test speak to a room.
func enter(t *testing.T, w *world) *room {
	r := &room{world: w, t: t, began: time.Now()}
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("SAUH_ROOM_LOGS") != "" {
			r.printLogs()
		}
	})
	return r
}

// BuildCluster makes a cluster of all nodes and its storage.
func (r *room) BuildCluster() {
	r.t.Helper()
	r.AgentsAnswer(r.names...)
	r.Must("n1", strings.TrimSpace("cluster create rt "+r.profile))
	for _, n := range r.names[1:] {
		r.Must(n, "cluster join "+r.JoinKey("n1"))
	}
	r.Must("n1", "storage add dir nas --path /srv/nas --shared --late-writes no")
	for _, n := range r.names {
		r.Eventually(n+" knows how it can run guests", patience, func() error {
			in, err := r.API(n).NodeInfo(r.ctx(2*time.Second), n)
			if err == nil && in.Accel == "" {
				err = errors.New("no acceleration yet: " + in.AccelReason)
			}
			return err
		})
	}
}

// JoinKey makes a key on a member.
func (r *room) JoinKey(member string) string {
	r.t.Helper()
	return strings.TrimSpace(r.Must(member, "cluster key").out)
}

// AgentsAnswer waits until the agents of these nodes serve their socket.
func (r *room) AgentsAnswer(names ...string) {
	r.t.Helper()
	for _, n := range names {
		r.Eventually("the agent of "+n+" answers", patience, func() error {
			_, err := r.API(n).Version(r.ctx(time.Second))
			return err
		})
	}
}

// AllWell waits until every node sees the whole cluster online.
func (r *room) AllWell() {
	r.t.Helper()
	for _, n := range r.names {
		r.Eventually(n+" sees all nodes online", patience, func() error { return r.wellAt(n) })
	}
}

func (r *room) wellAt(node string) error {
	st, err := r.API(node).ClusterStatus(r.ctx(2 * time.Second))
	if err != nil {
		return err
	}
	if !st.Quorate || st.Leader == "" || len(st.Nodes) != len(r.names) {
		return fmt.Errorf("%s: quorate %v, leader %q, %d nodes", node, st.Quorate, st.Leader, len(st.Nodes))
	}
	for _, n := range st.Nodes {
		if !n.Online || n.Fenced {
			return fmt.Errorf("%s sees %s: online %v, fenced %v", node, n.Name, n.Online, n.Fenced)
		}
	}
	protected, err := r.API(node).HAStatus(r.ctx(2 * time.Second))
	if err != nil {
		return err
	}
	for _, n := range protected.Nodes {
		if n.Lost != "" { // of a cable that the test before had unplugged; guests leave such a node
			return fmt.Errorf("%s: %s lost %s", node, n.Node, n.Lost)
		}
	}
	in, err := r.API(node).NodeInfo(r.ctx(2*time.Second), node)
	if err != nil {
		return err
	}
	if !in.Guard.Connected || in.Guard.LeaseMS < freezeMargin.Milliseconds() || in.Accel == "" {
		return fmt.Errorf("%s: guard %+v, acceleration %q", node, in.Guard, in.Accel)
	}
	return nil
}

// Repair undoes every fault.
func (r *room) Repair() {
	for _, pid := range r.stopped {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	r.stopped = nil
	ctx := context.Background()
	err := r.Heal(ctx)
	for _, n := range r.names {
		err = errors.Join(err, r.Link(ctx, n, lab.AllNetworks, true))
		_, perr := r.Power(ctx, n, lab.PowerOn)
		err = errors.Join(err, perr)
	}
	if err != nil {
		r.t.Error(err)
	}
}

// ctx bounds one question.
func (r *room) ctx(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// Node is what the room says of a node.
func (r *room) Node(name string) lab.NodeStatus {
	r.t.Helper()
	st, err := r.world.Status(r.ctx(10 * time.Second))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Node == name {
			return n
		}
	}
	r.t.Fatalf("the room has no node %s", name)
	return lab.NodeStatus{}
}

// API speaks to the agent of a node through its local socket, which needs no network. To a node that is off it gives
// a client that reaches nobody.
func (w *world) API(node string) *client.Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	init := w.initOf(node)
	a, ok := w.apis[node]
	if !ok || a.init != init {
		if ok {
			a.Close()
		}
		a = nodeAPI{client.New(client.Options{Socket: fmt.Sprintf("/proc/%d/root/run/sauh/api.sock", init)}), init}
		w.apis[node] = a
	}
	return a.Client
}

// initOf is a node's pid 1 as the host numbers it, 0 of a node that is off.
func (w *world) initOf(node string) int {
	pids, err := sys.Cgroup(filepath.Join(w.Cgroup(node), "init.scope")).Procs()
	if err != nil || len(pids) == 0 {
		return 0
	}
	return slices.Min(pids)
}

// nodeAPI is a client and the node's pid 1 whose file systems its socket is in.
type nodeAPI struct {
	*client.Client
	init int
}

// Cluster is the cluster's status as node sees it.
func (r *room) Cluster(node string) api.ClusterStatus {
	r.t.Helper()
	st, err := r.API(node).ClusterStatus(r.ctx(5 * time.Second))
	if err != nil {
		r.t.Fatalf("cluster status on %s: %v", node, err)
	}
	return st
}

// Cut unplugs both cables of a node.
func (r *room) Cut(node string) time.Time {
	r.t.Helper()
	return r.CutNetwork(node, lab.AllNetworks)
}

// CutNetwork unplugs the cables of a node in one network.
func (r *room) CutNetwork(node string, n lab.Network) time.Time {
	r.t.Helper()
	if err := r.Link(r.t.Context(), node, n, false); err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s: cables of %s unplugged: %s", clock(), node, n)
	return time.Now()
}

// Plug plugs all cables of a node in again.
func (r *room) Plug(node string) time.Time {
	r.t.Helper()
	if err := r.Link(r.t.Context(), node, lab.AllNetworks, true); err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s: cables of %s plugged in", clock(), node)
	return time.Now()
}

// PowerOff cuts the power of a node and returns when it was cut.
func (r *room) PowerOff(node string) time.Time {
	r.t.Helper()
	res, err := r.Power(r.t.Context(), node, lab.PowerOff)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s: power of %s cut", clock(), node)
	return res.CutAt
}

// PowerOn switches a node on and returns when it had booted.
func (r *room) PowerOn(node string) time.Time {
	r.t.Helper()
	if _, err := r.Power(r.t.Context(), node, lab.PowerOn); err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s: %s switched on", clock(), node)
	return time.Now()
}

// PID is the main process of a unit of a node, as the host numbers it.
func (r *room) PID(node, unit string) int {
	r.t.Helper()
	pids, err := r.unitPIDs(node, unit)
	if err != nil || len(pids) == 0 {
		r.t.Fatalf("%s of %s does not run: %v", unit, node, err)
	}
	return pids[0]
}

// unitPIDs lists a unit's processes, the oldest first.
func (r *room) unitPIDs(node, unit string) ([]int, error) {
	return sys.Cgroup(filepath.Join(r.Cgroup(node), "system.slice", unit+".service")).Procs()
}

// Names of the units of a node.
const (
	agentUnit = "sauh-agent"
	guardUnit = "sauh-guard"
)

// Signal sends a signal to the main process of a unit. What SIGSTOP stopped goes on at the end of the test.
func (r *room) Signal(node, unit string, sig syscall.Signal) time.Time {
	r.t.Helper()
	pid := r.PID(node, unit)
	if sig == syscall.SIGSTOP {
		r.stopped = append(r.stopped, pid)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		r.t.Fatalf("%s to %s of %s: %v", sig, unit, node, err)
	}
	r.t.Logf("%s: %s to %s of %s (pid %d)", clock(), sig, unit, node, pid)
	return time.Now()
}

// reply is what a command of the command line said.
type reply struct {
	line     string
	out, err string
	code     int
	took     time.Duration
}

func (a reply) String() string {
	return fmt.Sprintf("sauh %s: exit status %d after %v\n%s%s", a.line, a.code, a.took.Round(time.Millisecond), a.out, a.err)
}

// Sauh runs a command line in a node. Words are separated by blanks.
func (r *room) Sauh(node, line string) reply {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := r.Exec(ctx, node, append([]string{"sauh"}, strings.Fields(line)...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	a := reply{line: line, out: stdout.String(), err: stderr.String(), took: time.Since(begin)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		a.code = exit.ExitCode()
	} else if err != nil {
		r.t.Fatalf("%s: sauh %s: %v", node, line, err)
	}
	return a
}

// Must runs a command line that has to succeed.
func (r *room) Must(node, line string) reply {
	r.t.Helper()
	a := r.Sauh(node, line)
	if a.code != 0 {
		r.t.Fatalf("on %s: %s", node, a)
	}
	return a
}

// Refused runs a command line that has to fail with exit status 1 and one
// sentence on standard error that has all of want in it.
func (r *room) Refused(node, line string, want ...string) reply {
	r.t.Helper()
	a := r.Sauh(node, line)
	if a.code != 1 || strings.Count(strings.TrimSpace(a.err), "\n") != 0 || !strings.HasPrefix(a.err, "sauh: ") {
		r.t.Errorf("on %s: want exit status 1 and one sentence, got %s", node, a)
	}
	for _, w := range want {
		if !strings.Contains(a.err, w) {
			r.t.Errorf("on %s: want an error with %q, got %s", node, w, a)
		}
	}
	return a
}

// Shell runs a line of sh in a node; it has to succeed.
func (r *room) Shell(node, line string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := r.Exec(ctx, node, "sh", "-c", line).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %s: %v\n%s", node, line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// pollPace is how often Eventually and Throughout look.
const pollPace = 50 * time.Millisecond

// Eventually waits until ok returns nil, and returns how long that took. The test ends if it takes longer than within.
func (r *room) Eventually(what string, within time.Duration, ok func() error) time.Duration {
	r.t.Helper()
	begin := time.Now()
	tick := time.NewTicker(pollPace)
	defer tick.Stop()
	for {
		err := ok()
		took := time.Since(begin)
		if err == nil && took <= within {
			return took
		}
		if took > within {
			r.t.Fatalf("%s: not within %v: %s: %v", clock(), within, what, err)
		}
		<-tick.C
	}
}

// Throughout looks for the time d and ends the test when ok does not hold. With a nil ok it is the length of a fault.
func (r *room) Throughout(d time.Duration, what string, ok func() error) {
	r.t.Helper()
	end := time.After(d)
	tick := time.NewTicker(pollPace)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
		}
		if ok == nil {
			continue
		}
		if err := ok(); err != nil {
			r.t.Fatalf("%s: %s: %v", clock(), what, err)
		}
	}
}

func clock() string { return time.Now().Format("15:04:05.000") }

// tailLines is how much of each log a failure prints.
const tailLines = 40

// printLogs prints the ends of the logs of the room, of every unit and of the guests' serial ports.
func (r *room) printLogs() {
	files := []string{filepath.Join(r.Dir(), "room.log")}
	for _, n := range r.names {
		for _, unit := range []string{initUnit, guardUnit, agentUnit} {
			files = append(files, filepath.Join(r.Log(n), unit+".log"))
		}
		serial, _ := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/sauh/qemu/*.log", r.initOf(n)))
		files = append(files, serial...)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		lines = lines[max(0, len(lines)-tailLines):]
		r.t.Logf("%s:\n%s", strings.TrimPrefix(f, r.Dir()+"/"), strings.Join(lines, "\n"))
	}
	r.t.Log(r.sampler.summary())
}
