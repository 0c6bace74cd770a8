// Package qgatest is a guest agent with bad manners, for the tests of those who talk to one: it can be silent, late, talk in single
// bytes, or say things that nobody asked for. It has no guest behind it. Start with [Start].
package qgatest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"

	"sauh.dev/sauh/internal/qga"
)

// Agent is a fake agent behind a fake port. Like QEMU's port it serves one connection at a time, and what was
// answered too late stays in it for the next one. Its methods are safe for concurrent use.
type Agent struct {
	wg sync.WaitGroup

	mu       sync.Mutex
	handlers map[string]qga.Handler
	commands []string
	silent   bool
	held     []byte // what it would have said while it was silent
	before   []byte // what it says at the beginning of a connection
	split    bool
	conns    map[net.Conn]bool
	closed   bool
	listener net.Listener
}

// Start returns an agent that answers pings, infos and synchronizations.
func Start() *Agent { return &Agent{handlers: map[string]qga.Handler{}, conns: map[net.Conn]bool{}} }

// Handle sets what a command does.
func (a *Agent) Handle(command string, h qga.Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handlers[command] = h
}

// Silence makes the agent hang, or go on: then the next connection gets all that it did not say.
func (a *Agent) Silence(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silent && !on {
		a.before, a.held = append(a.before, a.held...), nil
	}
	a.silent = on
}

// Rubbish is said at the beginning of the next connection.
func (a *Agent) Rubbish(b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = append(a.before, b...)
}

// Split makes the agent send each byte by itself.
func (a *Agent) Split() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.split = true
}

// Commands lists what was asked, synchronizations left out.
func (a *Agent) Commands() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.commands...)
}

// Dial connects over a pipe, which works inside a synctest bubble.
func (a *Agent) Dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	a.serve(ours)
	return theirs, nil
}

// Client asks this agent over pipes.
func (a *Agent) Client() *qga.Client { return qga.New(a.Dial) }

// Listen serves a unix socket.
func (a *Agent) Listen(ctx context.Context, path string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	a.mu.Lock()
	a.listener = l
	a.mu.Unlock()
	a.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.serve(c)
		}
	})
	return nil
}

// Close ends everything and waits for it.
func (a *Agent) Close() {
	a.mu.Lock()
	a.closed = true
	if a.listener != nil {
		_ = a.listener.Close()
	}
	for c := range a.conns {
		_ = c.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

func (a *Agent) serve(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		_ = c.Close()
		return
	}
	a.conns[c] = true
	a.wg.Go(func() {
		s := &qga.Server{Version: "fake", Handlers: a.note()}
		_ = s.Serve(port{a, c}) // the client has gone
		a.mu.Lock()
		delete(a.conns, c)
		a.mu.Unlock()
		_ = c.Close()
	})
}

// note wraps the handlers so that what was asked is known.
func (a *Agent) note() map[string]qga.Handler {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := map[string]qga.Handler{}
	for name, h := range a.handlers {
		all[name] = h
	}
	if all["guest-ping"] == nil {
		all["guest-ping"] = func(json.RawMessage) (any, error) { return nil, nil }
	}
	for name, h := range all {
		all[name] = func(args json.RawMessage) (any, error) {
			a.mu.Lock()
			a.commands = append(a.commands, name)
			a.mu.Unlock()
			return h(args)
		}
	}
	return all
}

// port is the guest's end of a connection.
type port struct {
	a *Agent
	c net.Conn
}

func (p port) Read(b []byte) (int, error) { return p.c.Read(b) }

func (p port) Write(b []byte) (int, error) {
	p.a.mu.Lock()
	if p.a.silent {
		p.a.held = append(p.a.held, b...)
		p.a.mu.Unlock()
		return len(b), nil
	}
	out := append(p.a.before, b...)
	p.a.before = nil
	step := len(out)
	if p.a.split {
		step = 1
	}
	p.a.mu.Unlock()
	for i := 0; i < len(out); i += step {
		if _, err := p.c.Write(out[i:min(i+step, len(out))]); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
