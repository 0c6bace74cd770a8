package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"sauh.dev/sauh/internal/core/model"
)

// A node that was booted anew has no end of the connections to its life before, and may not even refuse them.
func TestConnectionsToAPeersLifeBeforeAreGivenUp(t *testing.T) {
	n := newNode(t)
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Mgmt: "127.0.0.1", Cluster: "127.0.0.1"})))
	live := func(l model.Live) { n.put(model.LivePrefix+"n2", string(mustJSON(l))) }
	opened, closed := make(chan struct{}, 9), make(chan struct{}, 9)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened <- struct{}{}
		}
		if s == http.StateClosed {
			closed <- struct{}{}
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	p := newPeers("n1", n.a.log, n.m.roster, &tls.Config{})
	ask := func() {
		t.Helper()
		rt, err := p.RoundTripper("n2")
		must(t, err)
		tr := rt.(*http.Transport)
		tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://n2/", nil)
		must(t, err)
		resp, err := rt.RoundTrip(req)
		must(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		must(t, resp.Body.Close())
	}
	live(model.Live{Epoch: 1, BootID: "a", Seq: 1})
	ask()
	live(model.Live{Epoch: 1, BootID: "a", Seq: 2}) // a renewal
	ask()
	if len(opened) != 1 || len(closed) != 0 {
		t.Errorf("%d connections, %d closed, in one life", len(opened), len(closed))
	}
	for i, next := range []model.Live{{Epoch: 1, BootID: "b"}, {Epoch: 2, BootID: "b"}} {
		live(next)
		ask()
		<-closed
		if len(opened) != i+2 {
			t.Errorf("%d connections in life %d", len(opened), i+2)
		}
	}
}

func TestANodeIsNotBlamedForWhoGaveUpAsking(t *testing.T) {
	n := newNode(t)
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Mgmt: "127.0.0.1", Cluster: "127.0.0.1"})))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := callPeer[struct{}](ctx, newPeers("n1", n.a.log, n.m.roster, &tls.Config{}), "n2", "guests", struct{}{})
	if !errors.Is(err, context.Canceled) || errors.Is(err, model.ErrUnavailable) {
		t.Errorf("answered with %v", err)
	}
}
