package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Prefix stands before every path of the API.
const Prefix = "/api2/json"

// maxBody bounds what is read of one request, as in Proxmox VE: a guest's
// configuration is a few kilobytes, and images never come this way.
const maxBody = 512 << 10

// Options of a server. The zero value is usable.
type Options struct {
	// Logger gets one line for each answer of 500 and above; nil discards them.
	Logger *slog.Logger
	// Local says that a request came over the unix socket that only root can open,
	// and so needs no certificate. nil asks the mark that [LocalConnContext] leaves.
	Local func(*http.Request) bool
}

type localKey struct{}

// LocalConnContext marks connections of a unix socket as local. Set it as ConnContext of
// the http.Server that serves the handler; the socket's file mode decides who may connect.
func LocalConnContext(ctx context.Context, c net.Conn) context.Context {
	if _, unix := c.(*net.UnixConn); unix {
		return context.WithValue(ctx, localKey{}, true)
	}
	return ctx
}

func isLocal(r *http.Request) bool {
	local, _ := r.Context().Value(localKey{}).(bool)
	return local
}

// server is the handler. It has no state of its own: everything is asked of the backend.
type server struct {
	b      Backend
	opts   Options
	log    *slog.Logger
	routes []route
}

// NewServer returns the handler of the whole API, to be served over HTTP/1.1 only
// (HTTP/2 has no place for the reason phrase that clients read errors from). It
// trusts local sockets and TLS clients whose certificate was verified; of
// everybody else it serves the join path alone.
func NewServer(b Backend, opts Options) http.Handler {
	s := &server{b: b, opts: opts, log: opts.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.opts.Local == nil {
		s.opts.Local = isLocal
	}
	s.routes = s.table()
	return s
}

// ServeHTTP answers one request: who asks, which route, here or on another node, with
// which parameters.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := splitPath(r.URL.Path)
	if len(path) < 2 || path[0] != "api2" || path[1] != "json" {
		s.fail(w, r, errorf(http.StatusNotFound, "no such file '%s'", r.URL.Path))
		return
	}
	path = path[2:]
	if !s.admits(r, path) {
		s.fail(w, r, &apiError{status: http.StatusUnauthorized, message: "No ticket", noBody: true})
		return
	}
	if s.b.Peers != nil && isPeerPath(path) {
		s.b.Peers.Handler().ServeHTTP(w, r)
		return
	}
	if err := s.dispatch(w, r, path); err != nil {
		s.fail(w, r, err)
	}
}

// admits decides who may ask. A TCP client needs a certificate of the cluster's CA,
// unless it is about to join and so cannot have one yet.
func (s *server) admits(r *http.Request, path []string) bool {
	if s.opts.Local(r) {
		return true
	}
	if r.TLS == nil {
		return false
	}
	return len(r.TLS.VerifiedChains) > 0 || isJoinPath(path)
}

func isJoinPath(path []string) bool {
	return len(path) == 2 && path[0] == "sauh" && path[1] == "join"
}

func isPeerPath(path []string) bool {
	return isJoinPath(path) || len(path) >= 2 && path[0] == "sauh" && path[1] == "peer"
}

func (s *server) dispatch(w http.ResponseWriter, r *http.Request, path []string) error {
	switch r.Method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		return errorf(http.StatusNotImplemented, "method '%s' not available", r.Method)
	}
	rt, vars := s.match(r.Method, path)
	if rt == nil {
		return errorf(http.StatusNotImplemented, "Method '%s /%s' not implemented", r.Method, joinPath(path))
	}
	if r.Method != http.MethodGet && !rt.always && s.b.ReadOnly != nil {
		if err := s.b.ReadOnly(); err != nil {
			return err
		}
	}
	if rt.onNode {
		if target, remote, err := s.remote(r, vars["node"]); err != nil || remote {
			return s.forwardOr(w, r, target, err)
		}
	}
	a, err := readArgs(r, vars, rt.params)
	if err != nil {
		return err
	}
	c := &call{args: a, node: s.localName(vars["node"])}
	if rt.stream != nil {
		return rt.stream(w, r, c)
	}
	data, err := rt.do(r.Context(), c)
	if err != nil {
		return err
	}
	return s.reply(w, data)
}

func (s *server) forwardOr(w http.ResponseWriter, r *http.Request, target string, err error) error {
	if err != nil {
		return err
	}
	return s.forward(w, r, target)
}

// localName is the name to print for this node: its own, or the one it was
// addressed by while it has none.
func (s *server) localName(addressed string) string {
	if s.b.Peers != nil && s.b.Peers.LocalNode() != "" {
		return s.b.Peers.LocalNode()
	}
	return addressed
}

// withTotal is data with the number of all entries beside it.
type withTotal struct {
	data  any
	total int
}

func (s *server) reply(w http.ResponseWriter, data any) error {
	body := map[string]any{"data": data}
	if t, ok := data.(withTotal); ok {
		body["data"], body["total"] = t.data, t.total
	}
	b, err := marshal(body)
	if err != nil {
		return err
	}
	setHeaders(w.Header(), len(b))
	_, _ = w.Write(b) // an error here means that the client has gone
	return nil
}

// marshal prints < and > as they are, as Proxmox VE does.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

func setHeaders(h http.Header, length int) {
	h.Set("Content-Type", "application/json;charset=UTF-8")
	h.Set("Content-Length", strconv.Itoa(length))
	h.Set("Cache-Control", "max-age=0")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", time.Now().UTC().Format(http.TimeFormat))
	h.Set("Server", "pve-api-daemon/3.0")
}

// fail answers with an error. Nothing may have been written before.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // the client has gone
	}
	e := asAPIError(err)
	if e.status >= http.StatusInternalServerError {
		s.log.Debug("request refused", "method", r.Method, "path", r.URL.Path, "status", e.status, "err", e.message)
	}
	writeError(w, r, e)
}

// writeError sends e with its text in the status line, where many clients look for
// it and nowhere else. net/http cannot do that, so the connection is taken over,
// written by hand and closed; where it cannot be taken over (HTTP/2, a test's
// recorder) the phrase is the standard one.
func writeError(w http.ResponseWriter, r *http.Request, e *apiError) {
	// A connection closed with unread bytes is reset, and a reset may overtake the answer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(errorWriteTimeout)) // a recorder has none
	_, _ = io.CopyN(io.Discard, r.Body, maxBody)
	body := e.body()
	h := w.Header()
	setHeaders(h, len(body))
	if e.noBody {
		h.Del("Content-Type")
	}
	h.Set("Connection", "close")
	if e.kind != "" {
		h.Set(KindHeader, e.kind)
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		w.WriteHeader(e.status)
		_, _ = w.Write(body)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(errorWriteTimeout))
	var out bytes.Buffer
	out.WriteString("HTTP/1.1 " + strconv.Itoa(e.status) + " " + e.phrase() + "\r\n")
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	_ = h.Write(&out)
	out.WriteString("\r\n")
	if r.Method != http.MethodHead {
		out.Write(body)
	}
	_, _ = buf.Write(out.Bytes())
	_ = buf.Flush()
}

// errorWriteTimeout bounds the writing of an error to a client that does not read.
const errorWriteTimeout = 10 * time.Second
