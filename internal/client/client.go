// Package client is the typed client of Sauh's API: what the CLI, the lab and tests
// speak to an agent with, over its unix socket or over HTTPS.
//
// It knows the wire format and nothing of how things are done or printed; one file per
// noun has the methods. Invariant: every refusal of the server arrives as an [*Error] with the
// server's own sentence. Start reading with [New].
package client

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
	"net/url"
	"sort"
	"strings"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/api"
)

// DefaultSocket is where an agent listens for the CLI.
const DefaultSocket = "/run/sauh/api.sock"

// dialTimeout bounds the connection; an answer may take as long as the caller's context.
const dialTimeout = 5 * time.Second

// Options say which agent to speak to: Socket, or else URL with TLS.
type Options struct {
	Socket string // path of the unix socket
	// URL is "https://host:8006"; paths are added to it.
	URL string
	// TLS has the client certificate and the cluster's CA.
	TLS *tls.Config
	// Transport replaces the connection altogether, for peers and tests; URL is still used.
	Transport http.RoundTripper
}

// Client is safe for concurrent use. It keeps idle connections open until Close.
type Client struct {
	http    *http.Client
	base    string
	address string // for sentences
}

// New returns a client; it does not connect yet. The zero Options speak to DefaultSocket.
func New(o Options) *Client {
	c := &Client{base: strings.TrimRight(o.URL, "/"), address: o.URL}
	if o.Transport == nil {
		o.Transport = transport(o)
	}
	if c.base == "" {
		c.base, c.address = "http://localhost", socketPath(o)
	}
	c.http = &http.Client{Transport: o.Transport}
	return c
}

func socketPath(o Options) string {
	if o.Socket == "" {
		return DefaultSocket
	}
	return o.Socket
}

func transport(o Options) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	t := &http.Transport{
		TLSClientConfig: o.TLS, DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1 only
	}
	if o.URL == "" {
		path := socketPath(o)
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
	}
	return t
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is a refusal by the server. errors.Is recognises it as the sentinel of core/model
// that it stands for.
type Error struct {
	Status  int               // of HTTP
	Message string            // a sentence, without a newline at its end
	Errors  map[string]string // parameter → what is wrong with it
	kind    error
}

// Error prints what is wrong with the parameters, or else the message.
func (e *Error) Error() string {
	if len(e.Errors) == 0 {
		return e.Message
	}
	names := make([]string, 0, len(e.Errors))
	for n := range e.Errors {
		names = append(names, n)
	}
	sort.Strings(names)
	parts := make([]string, 0, len(names))
	for _, n := range names {
		parts = append(parts, n+": "+strings.TrimSpace(e.Errors[n]))
	}
	return strings.Join(parts, "; ")
}

// Is makes errors.Is(err, model.ErrNotFound) and its like true.
func (e *Error) Is(target error) bool { return e.kind != nil && e.kind == target }

// UnreachableError means that no answer came: nothing listens there, or the connection broke.
type UnreachableError struct {
	Address string
	Err     error
}

func (e *UnreachableError) Error() string {
	switch {
	case errors.Is(e.Err, syscall.EACCES):
		return fmt.Sprintf("no permission to open %s: run sauh as root", e.Address)
	case errors.Is(e.Err, io.EOF), errors.Is(e.Err, syscall.ECONNRESET), errors.Is(e.Err, syscall.EPIPE):
		return fmt.Sprintf("the Sauh agent on %s closed the connection before it answered: was it stopped? Try again", e.Address)
	}
	return fmt.Sprintf("the Sauh agent does not answer on %s: is it running? Start it with 'systemctl start sauh-agent' or 'sauh agent' (%v)",
		e.Address, innermost(e.Err))
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// innermost is the part of a network error that says something: "no such file or directory".
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// get, post, put and del send params and decode the data of the answer into into, which may be nil.
func (c *Client) get(ctx context.Context, path string, params url.Values, into any) error {
	return c.do(ctx, http.MethodGet, path, params, into)
}

func (c *Client) post(ctx context.Context, path string, params url.Values, into any) error {
	return c.do(ctx, http.MethodPost, path, params, into)
}

func (c *Client) put(ctx context.Context, path string, params url.Values, into any) error {
	return c.do(ctx, http.MethodPut, path, params, into)
}

func (c *Client) del(ctx context.Context, path string, params url.Values, into any) error {
	return c.do(ctx, http.MethodDelete, path, params, into)
}

func (c *Client) do(ctx context.Context, method, path string, params url.Values, into any) error {
	req, err := c.request(ctx, method, path, params)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.broken(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return c.broken(ctx, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(resp, b)
	}
	if into == nil {
		return nil
	}
	data := struct {
		Data any `json:"data"`
	}{into}
	if err := json.Unmarshal(b, &data); err != nil {
		return fmt.Errorf("decode the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// request puts the parameters into the body where the method has one, else into the query.
func (c *Client) request(ctx context.Context, method, path string, params url.Values) (*http.Request, error) {
	target := c.base + api.Prefix + path
	body := io.Reader(http.NoBody)
	withBody := method == http.MethodPost || method == http.MethodPut
	if withBody {
		body = bytes.NewReader([]byte(params.Encode()))
	} else if len(params) > 0 {
		target += "?" + params.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if withBody {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req, nil
}

// broken prefers the caller's own reason to what the connection says of it.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &UnreachableError{Address: c.address, Err: err}
}

// refusal reads the error's sentence from the body, or else from the status line.
func refusal(resp *http.Response, b []byte) *Error {
	_, phrase, _ := strings.Cut(resp.Status, " ")
	e := &Error{Status: resp.StatusCode, Message: phrase, kind: api.ErrorOfKind(resp.Header.Get(api.KindHeader))}
	var body struct {
		Message string            `json:"message"`
		Errors  map[string]string `json:"errors"`
	}
	if json.Unmarshal(b, &body) != nil {
		return e
	}
	if body.Message != "" {
		e.Message = strings.TrimSpace(body.Message)
	}
	e.Errors = body.Errors
	return e
}

// esc makes a name one segment of a path.
func esc(s string) string { return url.PathEscape(s) }

// values builds parameters from pairs; a pair with an empty value is left out.
func values(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

func b01(b bool) string {
	if b {
		return "1"
	}
	return ""
}
