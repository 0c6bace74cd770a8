package guest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"sauh.dev/sauh/internal/qga"
)

// talk connects a host to the guest's agent.
func talk(t *testing.T, g *Guest, powerOff func()) *qga.Client {
	t.Helper()
	return qga.New(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = g.agent(powerOff).Serve(agentVoice{g, ours, ours}) // the host has gone
		}()
		t.Cleanup(func() { _ = theirs.Close(); <-done })
		return theirs, nil
	})
}

func TestTheGuestAgentAnswers(t *testing.T) {
	g := newGuest(t)
	var off atomic.Int32
	c := talk(t, g, func() { off.Add(1) })
	info, err := c.Info(t.Context())
	if err != nil || info.Version != "sauh-guest" {
		t.Errorf("%+v %v", info, err)
	}
	for _, command := range []string{"guest-sync", "guest-sync-delimited", "guest-ping", "guest-shutdown", "guest-fsfreeze-status"} {
		if !info.Supports(command) {
			t.Errorf("%s is not among its commands", command)
		}
	}
	if s, err := c.FreezeStatus(t.Context()); s != qga.Thawed || err != nil {
		t.Errorf("%q %v", s, err)
	}
	if err := c.Shutdown(t.Context(), qga.PowerOff); err != nil || off.Load() != 1 {
		t.Errorf("asked to power off %d times, %v", off.Load(), err)
	}
}

func get(t *testing.T, g *Guest, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestTheGuestAgentGoesSilentWhenToldTo(t *testing.T) {
	g := newGuest(t)
	c := talk(t, g, func() {})
	for _, silent := range []bool{true, false} {
		path := "/agent?silent=0"
		if silent {
			path = "/agent?silent=1"
		}
		if w := get(t, g, path); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := c.Ping(ctx); errors.Is(err, qga.ErrSilent) != silent || !silent && err != nil {
			t.Errorf("silent %v: %v", silent, err)
		}
		cancel()
	}
	if w := get(t, g, "/agent?silent=2"); w.Code != http.StatusBadRequest {
		t.Errorf("%d", w.Code)
	}
}

func TestAFaultStrikesAfterItWasAnswered(t *testing.T) {
	g := newGuest(t)
	if w := get(t, g, "/hang"); w.Code != http.StatusNotImplemented {
		t.Errorf("what is no guest answers %d", w.Code)
	}
	struck := make(chan string, 2)
	g.faults = Faults{
		Panic: func() error { struck <- "panic"; return nil },
		Hang:  func() error { struck <- "hang"; return nil },
	}
	for _, want := range []string{"panic", "hang"} {
		if w := get(t, g, "/"+want); w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if got := <-struck; got != want {
			t.Errorf("asked for %s, got %s", want, got)
		}
	}
}

func TestTheAgentsPortIsFoundByItsName(t *testing.T) {
	dir := t.TempDir()
	if got, err := findAgentPort(dir); got != "" || err != nil {
		t.Errorf("without ports: %q %v", got, err)
	}
	for port, name := range map[string]string{"vport1p1": "com.redhat.spice.0\n", "vport1p2": agentPort + "\n"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, port), 0o755), os.WriteFile(filepath.Join(dir, port, "name"), []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := findAgentPort(dir); got != "/dev/vport1p2" || err != nil {
		t.Errorf("%q %v", got, err)
	}
}
