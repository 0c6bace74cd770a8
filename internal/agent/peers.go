package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/network"
)

// peers reaches the other members' agents and answers them; it implements api.Peers.
type peers struct {
	node      string
	log       *slog.Logger
	roster    roster
	tlsClient *tls.Config
	dialer    network.Dialer
	mux       *http.ServeMux

	mu         sync.Mutex
	transports map[string]connections // guarded by mu
}

// connections are those to one life of a member at its addresses.
type connections struct {
	of string
	tr *http.Transport
}

func newPeers(node string, log *slog.Logger, r roster, tlsClient *tls.Config) *peers {
	return &peers{node: node, log: log, roster: r, tlsClient: tlsClient, mux: http.NewServeMux(), transports: map[string]connections{}}
}

// LocalNode implements api.Peers.
func (p *peers) LocalNode() string { return p.node }

// RoundTripper implements api.Peers.
func (p *peers) RoundTripper(node string) (http.RoundTripper, error) {
	return p.transport(node)
}

// Handler implements api.Peers.
func (p *peers) Handler() http.Handler { return p.mux }

// peerAnswer is the envelope of what agents tell each other.
type peerAnswer[T any] struct {
	Data  T      `json:"data"`
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

// joinPath is the one thing that a node may ask that is no member yet.
const joinPath = "join"

// answer serves a path below /api2/json/sauh/ by f; peer, the caller's node name, comes from its certificate. Only joinPath
// is open to others than members.
func answer[Req, Resp any](p *peers, path string, f func(ctx context.Context, peer string, r Req) (Resp, error)) {
	p.mux.HandleFunc("POST /api2/json/sauh/"+path, func(w http.ResponseWriter, r *http.Request) {
		var out peerAnswer[Resp]
		err := func() (err error) {
			peer := certs.PeerName(r.TLS)
			if _, err := p.roster.node(peer); path != joinPath && err != nil {
				return model.Errorf(model.ErrInvalid, "only members of the cluster may call this")
			}
			var req Req
			if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&req); err != nil {
				return model.Invalidf("body", "%v", err)
			}
			out.Data, err = f(r.Context(), peer, req)
			return err
		}()
		if err != nil {
			p.log.Info("peer request refused", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
			out.Kind, out.Error = model.KindOf(err), err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the caller notices a broken answer itself
	})
}

// callPeer posts to another member's agent.
func callPeer[Resp any](ctx context.Context, p *peers, node, path string, req any) (Resp, error) {
	var out peerAnswer[Resp]
	tr, err := p.transport(node)
	if err != nil {
		return out.Data, err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+node+"/api2/json/sauh/peer/"+path, bytes.NewReader(mustJSON(req)))
	if err != nil {
		return out.Data, err
	}
	resp, err := (&http.Client{Transport: tr}).Do(hr)
	if errors.Is(err, context.Canceled) {
		return out.Data, fmt.Errorf("ask node %s: %w", node, err) // whoever asked gave up: that says nothing of the node
	}
	if err != nil {
		return out.Data, model.Errorf(model.ErrUnavailable, "node %s does not answer: %s", node, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out.Data, model.Errorf(model.ErrUnavailable, "node %s answers %s", node, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out.Data, fmt.Errorf("answer of %s: %w", node, err)
	}
	if out.Error != "" {
		return out.Data, model.FromKind(out.Kind, out.Error)
	}
	return out.Data, nil
}

// transport returns the connections to a member's API; they are kept and shared while the member lives. Those to a node that
// was booted or cut off since are given up: nobody is at their other end, and who used one would wait for seconds until that is noticed.
func (p *peers) transport(node string) (http.RoundTripper, error) {
	n, err := p.roster.node(node)
	if err != nil {
		return nil, err
	}
	live, err := mirror.Get[model.Live](p.roster.mirror.Snapshot(), model.LivePrefix+node)
	if err != nil {
		live.Value = model.Live{} // what cannot be read is one life
	}
	of := fmt.Sprint(n.Mgmt, " ", n.Cluster, " ", live.Value.BootID, " ", live.Value.Epoch)
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.transports[node]
	if old.tr != nil && old.of == of {
		return old.tr, nil
	}
	if old.tr != nil {
		old.tr.CloseIdleConnections()
	}
	conf := p.tlsClient.Clone()
	conf.ServerName = n.Name
	tr := &http.Transport{
		TLSClientConfig: conf,
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			return p.dialer.DialAny(ctx, "tcp", []string{net.JoinHostPort(n.Cluster, apiPort), net.JoinHostPort(n.Mgmt, apiPort)})
		},
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 3 * time.Second,
	}
	p.transports[node] = connections{of, tr}
	return tr, nil
}
