package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/mem"
)

// realQEMU is a qemu-system-x86_64 of this test.
type realQEMU struct {
	cmd  *exec.Cmd
	conn *qmp.Conn
	gone chan struct{}
}

func (q *realQEMU) QMP() *qmp.Conn { return q.conn }

func (q *realQEMU) Destroy(context.Context) error {
	_ = q.cmd.Process.Kill() // it may be gone already
	<-q.gone
	return q.conn.Close()
}

// room of real processes: one shared image, sockets and the guests' RAM in a directory.
type realRoom struct {
	t   *testing.T
	dir string

	mu    sync.Mutex
	procs map[string]*realQEMU
	lines []string
}

func newRealRoom(t *testing.T) *realRoom {
	t.Helper()
	for _, program := range []string{"qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	r := &realRoom{t: t, dir: t.TempDir(), procs: map[string]*realQEMU{}}
	out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", r.image(), "64M").CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	t.Cleanup(func() {
		for _, q := range r.procs {
			_ = q.Destroy(context.Background())
		}
	})
	return r
}

func (r *realRoom) image() string { return filepath.Join(r.dir, "disk.qcow2") }

func (r *realRoom) start(ctx context.Context, name string, args ...string) (*realQEMU, error) {
	socket := filepath.Join(r.dir, fmt.Sprintf("%s-%d.qmp", name, len(r.procs)))
	args = append([]string{
		"-machine", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none",
		"-drive", "file=" + r.image() + ",format=qcow2,if=virtio",
		"-qmp", "unix:" + socket + ",server=on,wait=off",
	}, args...)
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	q := &realQEMU{cmd: cmd, gone: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // killed or quit, both are expected
		close(q.gone)
	}()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var err error
	for q.conn == nil && ctx.Err() == nil {
		q.conn, err = qmp.Dial(ctx, socket)
		_ = sleep(ctx, 10*time.Millisecond)
	}
	if q.conn == nil {
		_ = cmd.Process.Kill()
		<-q.gone
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.procs[name] = q
	return q, nil
}

// locked reports whether some process holds the image for writing.
func (r *realRoom) locked() bool {
	return exec.Command("qemu-img", "info", "-q", r.image()).Run() != nil
}

func (r *realRoom) deps(c *mem.Cluster, name string) Deps {
	return Deps{
		Node: name, Store: c.Open(name), Notes: &memNotes{}, Claims: &Claims{}, Config: migrate.Defaults(),
		Log: func(_ model.VMID, line string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.lines = append(r.lines, name+": "+line)
		},
		Find: func(context.Context, model.VMID) (QEMU, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			q := r.procs[name]
			if q == nil {
				return nil, model.ErrNotFound
			}
			select {
			case <-q.gone:
				return nil, model.ErrNotFound
			default:
				return q, nil
			}
		},
	}
}

func seed(t *testing.T, c *mem.Cluster) {
	t.Helper()
	s := c.Open("seed")
	for key, v := range map[string]any{
		model.LivePrefix + nodeA: model.Live{Epoch: 1}, model.LivePrefix + nodeB: model.Live{Epoch: 1},
		model.GuestConfigKey(nodeA, guest): "name: probe\n",
	} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, b)}}); err != nil {
			t.Fatal(err)
		}
	}
}

// direct is a Peer without a network.
type direct struct{ *Target }

func status(t *testing.T, q *realQEMU) string {
	t.Helper()
	s, err := monitor{q.conn}.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pair starts a running source and the Target of the other node.
func (r *realRoom) pair(t *testing.T) (*realQEMU, SourceDeps) {
	t.Helper()
	c := mem.New()
	seed(t, c)
	a, err := r.start(t.Context(), nodeA)
	if err != nil {
		t.Fatal(err)
	}
	in := NewTarget(TargetDeps{
		Deps: r.deps(c, nodeB), Listen: "127.0.0.1",
		Start: func(ctx context.Context, _ StartRequest) (QEMU, error) {
			return r.start(ctx, nodeB, "-S", "-incoming", "defer")
		},
	})
	t.Cleanup(in.Close)
	return a, SourceDeps{Deps: r.deps(c, nodeA), Peer: direct{in}}
}

func TestRealQEMUMovesWithItsImageLock(t *testing.T) {
	r := newRealRoom(t)
	a, d := r.pair(t)
	if !r.locked() {
		t.Fatal("the running source holds no image lock")
	}
	if err := Source(t.Context(), d, Request{VMID: guest, Target: nodeB, Task: "UPID:1"}); err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(r.lines, "\n"))
	}
	<-a.gone
	until(t, "the target runs", func() bool { return status(t, r.procs[nodeB]) == "running" })
	if !r.locked() {
		t.Error("the target holds no image lock")
	}
	var vmdesc bool
	err := r.procs[nodeB].conn.Execute(t.Context(), "qom-get", map[string]string{"path": "/machine", "property": "suppress-vmdesc"}, &vmdesc)
	if err != nil || !vmdesc {
		t.Errorf("suppress-vmdesc is %v, %v", vmdesc, err)
	}
	t.Log(strings.Join(r.lines, "\n"))
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not in 20 s: %s", what)
		}
		_ = sleep(t.Context(), 5*time.Millisecond)
	}
}

func TestRealQEMUStaysWhenCancelledMidWay(t *testing.T) {
	r := newRealRoom(t)
	a, d := r.pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d.Config.Bandwidth = 100_000 // the guest's 64 MiB, nearly all zero, are some 700 kB to send
	d.Progress = func(p model.MigrationProgress) {
		if p.TransferredBytes > 0 {
			cancel()
		}
	}
	err := Source(ctx, d, Request{VMID: guest, Target: nodeB, Task: "UPID:1"})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v\n%s", err, strings.Join(r.lines, "\n"))
	}
	if s := status(t, a); s != "running" {
		t.Errorf("the source is %s", s)
	}
	<-r.procs[nodeB].gone
	if _, err := d.Store.Get(t.Context(), intentKey(guest), store.Local); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the intent: %v", err)
	}
	t.Log(strings.Join(r.lines, "\n"))
}

// What the change of owner costs, against a migration whose target runs on by itself.
func TestTheChangeOfOwnerCostsLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("measures: not in short mode")
	}
	const n = 5
	var owned, plain []float64
	for range n {
		owned = append(owned, pauseOwned(t))
		plain = append(plain, pausePlain(t))
	}
	slices.Sort(owned)
	slices.Sort(plain)
	t.Logf("source's stop to target's resume, median of %d: %.1f ms with the change of owner, %.1f ms without", n, owned[n/2], plain[n/2])
	if owned[n/2] > plain[n/2]+100 {
		t.Errorf("the change of owner costs more than 100 ms")
	}
}

// first returns QEMU's time of the first event of that name, as soon as there is one.
func first(ch <-chan qmp.Event, name string) <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		for ev := range ch {
			if ev.Name == name {
				at <- ev.Time
				return
			}
		}
		close(at)
	}()
	return at
}

func between(t *testing.T, stop, resume <-chan time.Time) float64 {
	t.Helper()
	from, ok1 := <-stop
	to, ok2 := <-resume
	if !ok1 || !ok2 {
		t.Fatalf("no STOP (%v) or no RESUME (%v)", ok1, ok2)
	}
	return milliseconds(to.Sub(from))
}

func pauseOwned(t *testing.T) float64 {
	r := newRealRoom(t)
	a, d := r.pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stop := first(a.conn.Subscribe(ctx), "STOP")
	var resume <-chan time.Time
	d.Peer = onPrepared{d.Peer, func() { resume = first(r.procs[nodeB].conn.Subscribe(ctx), "RESUME") }}
	if err := Source(ctx, d, Request{VMID: guest, Target: nodeB, Task: "UPID:1"}); err != nil {
		t.Fatal(err)
	}
	return between(t, stop, resume)
}

type onPrepared struct {
	Peer
	then func()
}

func (p onPrepared) Prepare(ctx context.Context, r PrepareRequest) (PrepareAnswer, error) {
	answer, err := p.Peer.Prepare(ctx, r)
	if err == nil {
		p.then()
	}
	return answer, err
}

func pausePlain(t *testing.T) float64 {
	r := newRealRoom(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, err := r.start(ctx, nodeA)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.start(ctx, nodeB, "-incoming", "defer")
	if err != nil {
		t.Fatal(err)
	}
	stop, resume := first(a.conn.Subscribe(ctx), "STOP"), first(b.conn.Subscribe(ctx), "RESUME")
	to, err := monitor{b.conn}.listen(ctx, "127.0.0.1", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := (monitor{a.conn}).transfer(ctx, to, migrate.Transfer{Downtime: migrate.Defaults().Downtime}); err != nil {
		t.Fatal(err)
	}
	return between(t, stop, resume)
}
