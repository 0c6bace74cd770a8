// Package qmptest is a fake QEMU: it speaks QMP over a socket or a pipe, keeps
// the run state of a guest, and migrates between two fakes of one [Room].
//
// It is for tests and the simulator, and it imitates QEMU 10 where a caller could be
// hurt: a source whose migration fails resumes by itself, a source that
// completed does not, a cont during an incoming migration makes the guest run at its end,
// late-block-activate decides when a target takes the images. It runs no guest.
//
// Invariant: the Room sees every change of every run state under one lock, so
// [Room.Violations] knows of any instant at which two fakes ran, and of any guest that
// ran on with memory older than its disk. Start reading with [Room] and [QEMU].
package qmptest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"

	"sauh.dev/sauh/internal/qmp"
)

// Handler answers one command. An error of type *qmp.Error is sent as it is,
// any other as a GenericError with its text.
type Handler func(args json.RawMessage) (any, error)

// QEMU is one fake process. Its methods are safe for concurrent use.
type QEMU struct {
	Name string
	room *Room
	quit chan struct{} // closed when the process ended

	// Guarded by room.mu.
	clients    map[*client]bool
	handlers   map[string]Handler
	status     string
	booted     bool   // not yet run: its memory is that of a machine just switched on
	memory     int    // which state of the guest its memory holds
	wasRunning bool   // before the switch-over
	autostart  bool   // run at the end of an incoming migration
	address    string // where an incoming migration is expected
	locked     bool   // holds the image locks
	caps       map[string]bool
	params     map[string]any
	mig        migration
	dead       bool
	commands   []string
	record     io.Writer
	split      bool
}

// Handle replaces the answer to a command.
func (q *QEMU) Handle(command string, h Handler) {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	q.handlers[command] = h
}

// Record writes the session to w from now on: "> " before what the fake
// receives, "< " before what it sends, one message a line.
func (q *QEMU) Record(w io.Writer) {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	q.record = w
}

// Split makes the fake send each byte by itself.
func (q *QEMU) Split() {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	q.split = true
}

// Commands lists the names of all commands received.
func (q *QEMU) Commands() []string {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	return append([]string(nil), q.commands...)
}

// Status is the run state as query-status prints it, "" when the process is gone.
func (q *QEMU) Status() string {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	if q.dead {
		return ""
	}
	return q.status
}

// Gone is closed when the process ended.
func (q *QEMU) Gone() <-chan struct{} { return q.quit }

// Listen serves QMP on a unix socket until the process ends.
func (q *QEMU) Listen(ctx context.Context, path string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	q.room.wg.Add(2)
	go func() {
		defer q.room.wg.Done()
		<-q.quit
		_ = l.Close() // nothing to lose: it only ends Accept
	}()
	go func() {
		defer q.room.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			q.serve(c)
		}
	}()
	return nil
}

// Dial connects a client over a pipe, which works inside a synctest bubble.
func (q *QEMU) Dial(ctx context.Context) (*qmp.Conn, error) { return qmp.NewConn(ctx, q.Pipe()) }

// Pipe returns the client's end of a new connection.
func (q *QEMU) Pipe() net.Conn {
	ours, theirs := net.Pipe()
	q.serve(ours)
	return theirs
}

// client is one connection. What is sent to it waits in out.
type client struct {
	rw   net.Conn
	wake chan struct{}
	out  [][]byte // guarded by room.mu
}

func (q *QEMU) serve(rw net.Conn) {
	c := &client{rw: rw, wake: make(chan struct{}, 1)}
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	if q.dead {
		_ = rw.Close()
		return
	}
	q.clients[c] = true
	q.sendLocked(c, map[string]any{"QMP": map[string]any{
		"version":      map[string]any{"qemu": map[string]int{"major": 10, "minor": 0, "micro": 2}, "package": "fake"},
		"capabilities": []string{"oob"},
	}})
	q.room.wg.Add(2)
	go q.reader(c)
	go q.writer(c)
}

func (q *QEMU) reader(c *client) {
	defer q.room.wg.Done()
	dec := json.NewDecoder(c.rw)
	for {
		var raw json.RawMessage
		if dec.Decode(&raw) != nil {
			q.drop(c)
			return
		}
		q.receive(c, raw)
	}
}

func (q *QEMU) drop(c *client) {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	q.dropLocked(c)
}

func (q *QEMU) dropLocked(c *client) {
	if q.clients[c] {
		delete(q.clients, c)
		close(c.wake)
		_ = c.rw.Close() // the other side sees the end
	}
}

func (q *QEMU) writer(c *client) {
	defer q.room.wg.Done()
	for range c.wake {
		for {
			q.room.mu.Lock()
			if len(c.out) == 0 {
				q.room.mu.Unlock()
				break
			}
			b, split := c.out[0], q.split
			c.out = c.out[1:]
			q.room.mu.Unlock()
			if write(c.rw, b, split) != nil {
				q.drop(c)
				return
			}
		}
	}
}

func write(w io.Writer, b []byte, split bool) error {
	if !split {
		_, err := w.Write(b)
		return err
	}
	for i := range b {
		if _, err := w.Write(b[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (q *QEMU) sendLocked(c *client, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("qmptest: %s sends what is no JSON: %v", q.Name, err))
	}
	if q.record != nil {
		fmt.Fprintf(q.record, "< %s\n", b)
	}
	c.out = append(c.out, append(b, '\r', '\n'))
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Event sends an event to every client.
func (q *QEMU) Event(name string, data any) {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	q.eventLocked(name, data)
}

func (q *QEMU) eventLocked(name string, data any) {
	q.room.ticks++
	ev := map[string]any{
		"event":     name,
		"timestamp": map[string]int{"seconds": 1700000000 + q.room.ticks/1000, "microseconds": q.room.ticks % 1000 * 1000},
	}
	if data != nil {
		ev["data"] = data
	}
	for c := range q.clients {
		q.sendLocked(c, ev)
	}
}

// receive carries one command out and answers it.
func (q *QEMU) receive(c *client, raw json.RawMessage) {
	var cmd struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
		ID        json.RawMessage `json:"id"`
	}
	err := json.Unmarshal(raw, &cmd)
	q.room.at(q, "command "+cmd.Execute)
	q.room.mu.Lock()
	if q.dead {
		q.room.mu.Unlock()
		return
	}
	q.commands = append(q.commands, cmd.Execute)
	if q.record != nil {
		fmt.Fprintf(q.record, "> %s\n", raw)
	}
	h := q.handlers[cmd.Execute]
	q.room.mu.Unlock()
	var value any
	switch {
	case err != nil:
	case h != nil:
		value, err = h(cmd.Arguments)
	default:
		value, err = q.execute(cmd.Execute, cmd.Arguments)
	}
	q.room.at(q, "answer "+cmd.Execute)
	q.reply(c, cmd.ID, value, err)
	if cmd.Execute == "quit" && err == nil {
		q.Die()
	}
}

func (q *QEMU) reply(c *client, id json.RawMessage, value any, err error) {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	if !q.clients[c] {
		return
	}
	m := map[string]any{}
	if id != nil {
		m["id"] = id
	}
	switch {
	case err != nil:
		m["error"] = asError(err)
	case value == nil:
		m["return"] = struct{}{}
	default:
		m["return"] = value
	}
	q.sendLocked(c, m)
}
