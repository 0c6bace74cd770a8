//go:build room

package roomtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
	labguest "sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/lab/image"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/sys"
)

// guest is a probe guest as one test sees it. Its methods end the test when they fail.
type guest struct {
	r  *room
	id model.VMID
	ip string
	// params are added to those that it is created with.
	params map[string]string
}

// Guest names a guest; it need not exist. Ids are 100 to 199, so that they are the last byte of the address.
func (r *room) Guest(id model.VMID) *guest {
	return &guest{r: r, id: id, ip: fmt.Sprintf("10.10.1.%d", id)}
}

// On makes sure that the guest is there, runs on node without protection, and answers.
func (g *guest) On(node string) *guest {
	g.r.t.Helper()
	row, err := g.Find()
	switch {
	case errors.Is(err, model.ErrNotFound):
		g.create(node)
		row, err = g.Find()
	case err == nil && row.HA != "":
		err = g.r.API("n1").HARemove(g.r.ctx(5*time.Second), g.id.SID(), false)
	}
	if err != nil {
		g.r.t.Fatalf("guest %d: %v", g.id, err)
	}
	// The test before may have left a start under way: HA's own may win, and a node that boots does not answer at once.
	g.r.Eventually(fmt.Sprintf("guest %d runs somewhere", g.id), patience, func() (err error) {
		if row, err = g.Find(); err != nil || row.Status == "running" {
			return err
		}
		if row.Status == "stopped" {
			_, _ = g.r.API(row.Node).StartGuest(g.r.ctx(5*time.Second), row.Node, g.id)
		}
		return fmt.Errorf("it is %s on %s", row.Status, row.Node)
	})
	if row.Node != node {
		g.Migrate(row.Node, node, true)
	}
	g.r.Eventually(fmt.Sprintf("guest %d is not protected", g.id), patience, func() error {
		if g.marked(node) {
			return errors.New("its cgroup is under the guard")
		}
		return nil
	})
	g.MustAnswer(patience)
	return g
}

// Protected makes an HA resource of the guest and waits until it may be taken over.
func (g *guest) Protected() *guest {
	g.r.t.Helper()
	if err := g.r.API("n1").HAAdd(g.r.ctx(5*time.Second), api.HAResource{SID: g.id.SID(), State: "started"}); err != nil {
		g.r.t.Fatalf("protect guest %d: %v", g.id, err)
	}
	g.r.Eventually(fmt.Sprintf("guest %d is protected", g.id), patience, func() error {
		st, err := g.HA()
		if err == nil && (st.Status != "started" || !g.marked(st.Node)) {
			err = fmt.Errorf("%+v, under the guard: %v", st, g.marked(st.Node))
		}
		return err
	})
	return g
}

// marked says whether the guard has the guest's cgroup on node.
func (g *guest) marked(node string) bool {
	_, ok, err := g.cgroup(node).Mark("sauh.guard")
	return err == nil && ok
}

func (g *guest) cgroup(node string) sys.Cgroup {
	return sys.Cgroup(filepath.Join(g.r.sampler.guests(node), g.id.String()))
}

// HA is what the manager and the worker say of the guest.
func (g *guest) HA() (api.HAResource, error) {
	st, err := g.r.API("n1").HAStatus(g.r.ctx(2 * time.Second))
	if err != nil {
		return api.HAResource{}, err
	}
	for _, s := range st.Services {
		if s.SID == g.id.SID() {
			return s, nil
		}
	}
	return api.HAResource{}, model.Errorf(model.ErrNotFound, "%s is no HA resource", g.id.SID())
}

// Find asks the first node that answers for the guest's row in the list.
func (g *guest) Find() (row model.Guest, err error) {
	for _, n := range g.r.names {
		if row, err = g.FindAt(n); err == nil || errors.Is(err, model.ErrNotFound) {
			return row, err
		}
	}
	return row, err
}

// FindAt asks one node.
func (g *guest) FindAt(node string) (model.Guest, error) {
	return g.r.API(node).Guest(g.r.ctx(3*time.Second), g.id)
}

// MustBe waits until the guest is in that state on that node.
func (g *guest) MustBe(status, node string, within time.Duration) {
	g.r.t.Helper()
	g.r.Eventually(fmt.Sprintf("guest %d is %s on %s", g.id, status, node), within, func() error {
		row, err := g.Find()
		if err == nil && (row.Status != status || row.Node != node) {
			err = fmt.Errorf("it is %s on %s", row.Status, row.Node)
		}
		return err
	})
}

// create makes the guest's disk and the guest, and starts it.
func (g *guest) create(node string) {
	g.r.t.Helper()
	file := g.disk(image.Config{Quiet: true})
	params := map[string]string{
		"name": g.name(), "memory": "256", "virtio0": "nas:0,import-from=" + file, "net0": "virtio,bridge=vmbr0", "serial0": "socket",
	}
	maps.Copy(params, g.params)
	g.task(func(ctx context.Context, c *client.Client) (string, error) {
		return c.CreateGuest(ctx, node, api.CreateGuestRequest{VMID: g.id, Start: true, Params: params})
	})
	if err := os.Remove(filepath.Join(g.r.NAS(), filepath.Base(file))); err != nil {
		g.r.t.Fatal(err)
	}
}

func (g *guest) name() string { return "probe" + g.id.String() }

// disk puts a probe image of the guest's own on the NAS and returns its path in the nodes. Address and name are filled in.
func (g *guest) disk(c image.Config) string {
	g.r.t.Helper()
	src, err := g.r.probeImage(g.r.t.Context())
	if err != nil {
		g.r.t.Fatal(err)
	}
	name := g.name() + ".raw"
	file := filepath.Join(g.r.NAS(), name)
	if err := image.Copy(file, src); err != nil {
		g.r.t.Fatal(err)
	}
	c.IP, c.Gateway, c.Hostname = netip.MustParsePrefix(g.ip+"/24"), netip.MustParseAddr(lab.RoomAddress), g.name()
	if err := image.Personalize(file, c); err != nil {
		g.r.t.Fatal(err)
	}
	return "/srv/nas/" + name
}

// task starts a task at n1 and waits until it ended well.
func (g *guest) task(start func(context.Context, *client.Client) (string, error)) {
	g.r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := g.r.API("n1")
	upid, err := start(ctx, c)
	if err == nil {
		err = c.WaitTask(ctx, upid, nil, nil)
	}
	if err != nil {
		g.r.t.Fatalf("guest %d: %v", g.id, err)
	}
}

// QEMU is the one process of the guest; there must be exactly one.
func (g *guest) QEMU() process {
	g.r.t.Helper()
	ps := g.r.sampler.alive(g.id)
	if len(ps) != 1 {
		g.r.t.Fatalf("guest %d has %d processes: %v", g.id, len(ps), ps)
	}
	return ps[0]
}

// Processes are all that were there since the moment given.
func (g *guest) Processes(since time.Time) []process { return g.r.sampler.processes(g.id, since) }

// Stats asks the guest about itself, in a second.
func (g *guest) Stats() (labguest.Stats, error) {
	var st labguest.Stats
	err := g.get("/stats", &st)
	return st, err
}

// Dirty makes the guest write that much memory each second. The area is small because a new one may be made before
// the guest has freed the last.
func (g *guest) Dirty(mibPerSecond int) {
	g.r.t.Helper()
	var st labguest.Stats
	if err := g.get(fmt.Sprintf("/dirty?mib_per_s=%d&mib=48", mibPerSecond), &st); err != nil {
		g.r.t.Fatal(err)
	}
}

func (g *guest) get(path string, into any) error {
	req, err := http.NewRequestWithContext(g.r.ctx(2*time.Second), http.MethodGet, fmt.Sprintf("http://%s%s", g.ip, path), nil)
	if err != nil {
		return err
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: g.r.dial}
	resp, err := (&http.Client{Transport: tr, Timeout: time.Second}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// dial connects from the room's own network.
func (w *world) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	return conn, w.inNetwork(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
}

// inNetwork runs f on a thread that is in the room's network namespace: sockets that f makes are there.
func (w *world) inNetwork(f func() error) error {
	done := make(chan error, 1)
	go func() { // its thread ends with it
		err := sys.EnterNamespaces([]*os.File{w.netns})
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// MustAnswer waits until the guest answers and returns what it says.
func (g *guest) MustAnswer(within time.Duration) (st labguest.Stats) {
	g.r.t.Helper()
	g.r.Eventually(fmt.Sprintf("guest %d answers", g.id), within, func() (err error) {
		st, err = g.Stats()
		return err
	})
	g.r.t.Logf("%s: guest %d answers, %d ms after its boot", clock(), g.id, st.UptimeMS)
	return st
}

// ledger is a client that writes records into the guest and keeps what was acknowledged.
type ledger struct {
	g       *guest
	out     history
	running *probe.Running[probe.LedgerSummary]
}

// history is what a ledger's client wrote down.
type history struct {
	mu   sync.Mutex
	text bytes.Buffer
	acks int
}

// Write takes one line.
func (h *history) Write(line []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if bytes.Contains(line, []byte(`"kind":"ack"`)) {
		h.acks++
	}
	return h.text.Write(line)
}

// Acknowledged is how many records the guest has acknowledged so far.
func (l *ledger) Acknowledged() int {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	return l.out.acks
}

// MustGoOn waits until the guest acknowledges more.
func (l *ledger) MustGoOn(within time.Duration) {
	l.g.r.t.Helper()
	before := l.Acknowledged()
	l.g.r.Eventually(fmt.Sprintf("guest %d acknowledges records", l.g.id), within, func() error {
		if l.Acknowledged() == before {
			return errors.New("none")
		}
		return nil
	})
}

// ledgerPace keeps the ledger short enough to be read back in a second after many tests.
const ledgerPace = 20 * time.Millisecond

// Ledger begins to write and returns after the first acknowledgement.
func (g *guest) Ledger() *ledger {
	g.r.t.Helper()
	l := &ledger{g: g}
	p := probe.NewLedger(probe.LedgerConfig{Target: g.ip, Interval: ledgerPace}, &l.out)
	l.running = startIn(g.r, p.Run)
	l.MustGoOn(patience)
	return l
}

// startIn runs a probe in the room's network until it is stopped, at the latest when the test ends.
func startIn[S any](r *room, run func(context.Context) (S, error)) *probe.Running[S] {
	running := probe.Start(r.t.Context(), func(ctx context.Context) (sum S, err error) {
		err = r.inNetwork(func() (err error) {
			sum, err = run(ctx)
			return err
		})
		return sum, err
	})
	r.t.Cleanup(func() { _, _ = running.Stop() })
	return running
}

// MustBeWhole stops writing and demands that every acknowledged record is on the guest's disk, as it was
// acknowledged, and that nobody else wrote there.
func (l *ledger) MustBeWhole() probe.LedgerSummary {
	t := l.g.r.t
	t.Helper()
	sum, err := l.running.Stop()
	if err != nil {
		t.Fatal(err)
	}
	var h probe.History
	if err := h.ReadHistory(&l.out.text); err != nil {
		t.Fatal(err)
	}
	var v probe.Verdict
	l.g.r.Eventually("the ledger can be read", patience, func() error {
		return l.g.r.inNetwork(func() (err error) {
			v, err = probe.Verify(l.g.r.ctx(patience), l.g.ip, h)
			return err
		})
	})
	if !v.OK() || v.Acknowledged == 0 {
		t.Errorf("ledger of guest %d: %+v", l.g.id, v)
	}
	t.Logf("ledger of guest %d: %d acknowledged, %d lost, %d wrong, longest stall %.0f ms",
		l.g.id, v.Acknowledged, v.Lost, v.Wrong, sum.LongestMS)
	return sum
}

// Echo begins to ask the guest every 10 ms.
func (g *guest) Echo() *probe.Echo {
	e := probe.NewEcho(probe.EchoConfig{Target: g.ip}, nil)
	startIn(g.r, e.Run)
	return e
}

// longestGap is the longest time that an echo probe was without an answer since the moment given.
func longestGap(e *probe.Echo, since time.Time) time.Duration {
	return probe.Gaps(e.Series(), probe.Now()-time.Since(since), probe.Now()).Longest
}
