package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
)

// peersAPI is the agent in its role as api.Peers.
type peersAPI Agent

// LocalNode implements api.Peers.
func (p *peersAPI) LocalNode() string {
	if m := p.current.Load(); m != nil {
		return m.name
	}
	return ""
}

// RoundTripper implements api.Peers.
func (p *peersAPI) RoundTripper(node string) (http.RoundTripper, error) {
	m, err := (*Agent)(p).member()
	if err != nil {
		return nil, err
	}
	return m.transport(node)
}

// Handler implements api.Peers.
func (p *peersAPI) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api2/json/sauh/join", peerMethod((*Agent)(p), false, func(ctx context.Context, m *member, _ string, r joinRequest) (joinReply, error) {
		return m.admit(ctx, r, time.Now())
	}))
	mux.HandleFunc("POST /api2/json/sauh/peer/migrate/check", peerMethod((*Agent)(p), true, serveCheck))
	mux.HandleFunc("POST /api2/json/sauh/peer/migrate/prepare", peerMethod((*Agent)(p), true, servePrepare))
	mux.HandleFunc("POST /api2/json/sauh/peer/migrate/abort", peerMethod((*Agent)(p), true, serveAbort))
	mux.HandleFunc("POST /api2/json/sauh/peer/guests", peerMethod((*Agent)(p), true, func(ctx context.Context, m *member, _ string, _ struct{}) ([]model.Guest, error) {
		return m.localGuests(ctx), nil
	}))
	return mux
}

// peerAnswer is the envelope of what agents tell each other.
type peerAnswer[T any] struct {
	Data  T      `json:"data"`
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

// peerMethod makes a handler of a function; peer, the caller's node name, comes from its certificate.
func peerMethod[Req, Resp any](a *Agent, members bool, f func(context.Context, *member, string, Req) (Resp, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var out peerAnswer[Resp]
		err := func() error {
			m, err := a.member()
			if err != nil {
				return err
			}
			peer := certs.PeerName(r.TLS)
			if _, err := m.node(peer); members && err != nil {
				return model.Errorf(model.ErrInvalid, "only members of the cluster may call this")
			}
			var req Req
			if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&req); err != nil {
				return model.Invalidf("body", "%v", err)
			}
			out.Data, err = f(r.Context(), m, peer, req)
			return err
		}()
		if err != nil {
			a.log.Info("peer request refused", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
			out.Kind, out.Error = kindName(err), err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the caller notices a broken answer itself
	}
}

// callPeer posts to another member's agent.
func callPeer[Resp any](ctx context.Context, m *member, node, path string, req any) (Resp, error) {
	var out peerAnswer[Resp]
	tr, err := m.transport(node)
	if err != nil {
		return out.Data, err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+node+"/api2/json/sauh/peer/"+path, bytes.NewReader(mustJSON(req)))
	if err != nil {
		return out.Data, err
	}
	resp, err := (&http.Client{Transport: tr}).Do(hr)
	if err != nil {
		return out.Data, model.Errorf(model.ErrUnavailable, "node %s does not answer: %v", node, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out.Data, model.Errorf(model.ErrUnavailable, "node %s answers %s", node, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out.Data, fmt.Errorf("answer of %s: %w", node, err)
	}
	if out.Error != "" {
		return out.Data, kindFromName(out.Kind, out.Error)
	}
	return out.Data, nil
}

func kinds() map[string]error {
	return map[string]error{
		"not-found": model.ErrNotFound, "exists": model.ErrExists, "busy": model.ErrBusy, "no-quorum": model.ErrNoQuorum,
		"unavailable": model.ErrUnavailable, "conflict": model.ErrConflict, "invalid": model.ErrInvalid,
	}
}

func kindName(err error) string {
	for name, kind := range kinds() {
		if errors.Is(err, kind) {
			return name
		}
	}
	return ""
}

func kindFromName(name, msg string) error {
	if kind := kinds()[name]; kind != nil {
		return model.Errorf(kind, "%s", msg)
	}
	return errors.New(msg)
}

// transport returns the connections to a member's API; they are kept and shared.
func (m *member) transport(node string) (http.RoundTripper, error) {
	n, err := m.node(node)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := n.Name + " " + n.Mgmt + " " + n.Cluster
	if tr := m.transports[key]; tr != nil {
		return tr, nil
	}
	conf := m.tlsClient.Clone()
	conf.ServerName = n.Name
	tr := &http.Transport{
		TLSClientConfig: conf,
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			return m.dialer.DialAny(ctx, "tcp", []string{net.JoinHostPort(n.Cluster, apiPort), net.JoinHostPort(n.Mgmt, apiPort)})
		},
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 3 * time.Second,
	}
	m.transports[key] = tr
	return tr, nil
}
