package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corehealth "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qmp/qmptest"
)

// leadsTo has calls to node go to a server, which is closed at the test's end.
func (n *node) leadsTo(p *peers, name string, h http.HandlerFunc) {
	n.t.Helper()
	n.put(model.NodePrefix+name, string(mustJSON(model.Node{Name: name, ID: 9})))
	srv := httptest.NewTLSServer(h)
	n.t.Cleanup(srv.Close)
	tr := srv.Client().Transport.(*http.Transport).Clone()
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}
	tr.TLSClientConfig.ServerName = "example.com" // whom the server's certificate names
	p.transports[name] = connections{of: "   0", tr: tr}
}

// The panic comes while the memory is copied, after the target was asked: its QEMU never hears of it.
func TestTheTargetLearnsWhenTheGuestHasPanickedOnItsWay(t *testing.T) {
	n, _, _ := startNode(t)
	var asked []string
	peers := newPeers("n1", n.a.log, n.m.roster, nil)
	n.leadsTo(peers, "n9", func(w http.ResponseWriter, r *http.Request) {
		var body [64]byte
		k, _ := r.Body.Read(body[:])
		asked = append(asked, r.URL.Path+" "+string(body[:k]))
		_, _ = w.Write([]byte("{}"))
	})
	d := &departures{peers: peers}
	p := newProc(&qemu.Process{}, false)
	var log []string
	say := func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }
	d.handOver(t.Context(), 100, p, "n9", say)
	if len(asked)+len(log) != 0 {
		t.Errorf("a guest that is well is spoken of: %q, %q", asked, log)
	}
	p.condition.Store(&corehealth.Condition{Sick: corehealth.SickPanicked})
	d.handOver(t.Context(), 100, p, "n9", say)
	d.handOver(t.Context(), 100, p, "n8", say)
	if want := "/api2/json/sauh/peer/migrate/panicked {\"vmid\":100}"; len(asked) != 1 || asked[0] != want {
		t.Errorf("the target was told %q, want %s", asked, want)
	}
	if len(log) != 2 || log[0] != "n9 knows that the guest's kernel has panicked" || !strings.HasPrefix(log[1], "n8 does not know") {
		t.Errorf("the task says %q", log)
	}
}

func TestAGuestThatPanickedWhereItCameFromIsSickHere(t *testing.T) {
	n, _, _ := startNode(t)
	room := qmptest.NewRoom()
	t.Cleanup(room.Close)
	n.m.procs.watch = nil
	spec := aRunningGuest()
	n.runsAs(spec)
	told := func() error {
		_, err := n.m.arrivals.panicked(t.Context(), "n2", panickedRequest{100})
		return err
	}
	refused(t, told(), model.ErrNotFound, "no process of guest 100 is on n1 that came from another node")

	spec.Incoming = true
	n.runsAs(spec)
	p := n.m.procs.get(100)
	must(t, room.Start("n1").Listen(t.Context(), p.Spec().QMPSocket()))
	done := make(chan struct{})
	n.m.wg.Go(func() { defer close(done); n.m.health.guest(n.m.ctx, 100, p) })
	must(t, told())
	eventually(t, "it is sick", func() bool { return p.health().Sick == corehealth.SickPanicked })
	n.m.cancel()
	<-done
}
