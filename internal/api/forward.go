package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// localhost stands for the node that answers, as in Proxmox VE.
const localhost = "localhost"

// forwardedHeader names the node that sent a request on. A request that has it is
// never sent on again, so two nodes that disagree about their names cannot play ping-pong.
const forwardedHeader = "Sauh-Forwarded"

// forwardTimeout is how long a node may take to answer for another, as long as Proxmox VE waits.
const forwardTimeout = 30 * time.Second

// askTimeout is how long a list waits for each of the other nodes.
const askTimeout = time.Second

// remote says whether node is another node than this one.
func (s *server) remote(r *http.Request, node string) (string, bool, error) {
	if node == localhost || s.b.Peers == nil && s.b.Absent == nil || s.b.Peers != nil && node == s.b.Peers.LocalNode() {
		return "", false, nil
	}
	if model.ValidateNodeName(node) != nil {
		return "", false, nil // refused with the other parameters
	}
	if s.b.Peers == nil {
		return "", false, s.b.Absent()
	}
	if by := r.Header.Get(forwardedHeader); by != "" {
		return "", false, errorf(StatusUnreachable, "node '%s' sent a request for node '%s' to node '%s': is one of their addresses used twice?",
			by, node, s.localName(""))
	}
	return node, true, nil
}

// forward lets another node answer, websockets included.
func (s *server) forward(w http.ResponseWriter, r *http.Request, node string) error {
	rt, err := s.transport(node)
	if err != nil {
		return err
	}
	if r.Header.Get("Upgrade") == "" {
		ctx, cancel := context.WithTimeout(r.Context(), forwardTimeout)
		defer cancel()
		r = r.WithContext(ctx)
	}
	proxy := &httputil.ReverseProxy{
		Transport: rt,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "https", node, node
			p.Out.URL.RawQuery = p.In.URL.RawQuery // the other node judges it
			p.Out.Header.Set(forwardedHeader, s.b.Peers.LocalNode())
		},
		ModifyResponse: upstreamError,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			var e *apiError
			if !errors.As(err, &e) {
				e = s.unreachable(r.Context(), node, err)
			}
			s.fail(w, r, e)
		},
		FlushInterval: -1,
	}
	proxy.ServeHTTP(w, r)
	return nil
}

func (s *server) transport(node string) (http.RoundTripper, error) {
	rt, err := s.b.Peers.RoundTripper(node)
	if errors.Is(err, model.ErrNotFound) {
		return nil, notFoundf("no such cluster node '%s'", node)
	}
	return rt, err
}

// unreachable says whether a node that does not answer is known to be off.
func (s *server) unreachable(ctx context.Context, node string, err error) *apiError {
	why := strings.ReplaceAll(err.Error(), "\n", "; ")
	e := errorf(StatusUnreachable, "node '%s' does not answer: %s", node, why)
	st, err := s.b.Cluster.Status(context.WithoutCancel(ctx))
	if i := slices.IndexFunc(st.Nodes, func(n NodeStatus) bool { return n.Name == node }); err == nil && i >= 0 && !st.Nodes[i].Online {
		e.message = fmt.Sprintf("node '%s' is offline: switch it on, or see what is up with 'sauh cluster status' (%s)", node, why)
	}
	e.kind = KindOf(model.ErrUnavailable)
	return e
}

// upstreamError turns another node's refusal into an error of ours, because the
// proxy would drop the phrase of its status line.
func upstreamError(resp *http.Response) error {
	if resp.StatusCode < http.StatusBadRequest {
		return nil
	}
	_, phrase, _ := strings.Cut(resp.Status, " ")
	e := &apiError{status: resp.StatusCode, message: phrase, kind: resp.Header.Get(KindHeader)}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	_ = resp.Body.Close()
	var body struct {
		Message string            `json:"message"`
		Errors  map[string]string `json:"errors"`
	}
	if err != nil || json.Unmarshal(b, &body) != nil {
		return e
	}
	if body.Message != "" {
		e.message = body.Message
	}
	e.errors = body.Errors
	return e
}

// ask gets path, which begins with a slash, from another node and decodes its data.
func (s *server) ask(ctx context.Context, node, path string, into any) error {
	rt, err := s.transport(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+node+Prefix+path, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set(forwardedHeader, s.b.Peers.LocalNode())
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return s.unreachable(ctx, node, err)
	}
	defer resp.Body.Close()
	if err := upstreamError(resp); err != nil {
		return err
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return s.unreachable(ctx, node, err)
	}
	data := struct {
		Data any `json:"data"`
	}{into}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&data); err != nil {
		return fmt.Errorf("decode the answer of node %s: %w", node, err)
	}
	return nil
}

// askAll asks every node in nodes at the same time, this one through local. A node that
// does not answer within askTimeout is missing in the result.
func askAll[T any](ctx context.Context, s *server, nodes []string, path func(node string) string,
	local func(context.Context) (T, error),
) map[string]T {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]T{}
	for _, node := range nodes {
		wg.Go(func() {
			var v T
			var err error
			if s.b.Peers == nil || node == s.b.Peers.LocalNode() {
				v, err = local(ctx)
			} else {
				err = s.ask(ctx, node, path(node), &v)
			}
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[node] = v
		})
	}
	wg.Wait()
	return out
}
