package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Conn is a negotiated connection. Its methods are safe for concurrent use.
// Three kinds of goroutine serve it, a reader, a writer and one for each
// subscription; Close waits for all of them.
type Conn struct {
	rw      io.ReadWriteCloser
	wg      sync.WaitGroup
	done    chan struct{} // the connection is over, err says why
	closed  chan struct{} // Close was called: undelivered events may be dropped
	wake    chan struct{} // the writer has work
	greeted chan struct{}

	mu      sync.Mutex
	version Version
	nextID  uint64
	pending map[uint64]chan reply // commands that wait for their answer
	queue   []request             // commands that wait to be written
	tail    *node                 // where the next event goes
	err     error
	closing bool
}

type request struct {
	id   uint64
	line []byte
}

type reply struct {
	value json.RawMessage
	err   error
}

// message is anything QEMU sends; which field is set tells what it is.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU Version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	ID        *uint64         `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Version returns what the greeting said.
func (c *Conn) Version() Version {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// Done is closed when the connection is over, which for a monitor socket means
// that QEMU ended or that Close was called.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection is over; nil while it is not. The error wraps ErrClosed.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for its goroutines. Commands in flight
// return ErrClosed, subscriptions end. Closing twice is once.
func (c *Conn) Close() error {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	c.mu.Unlock()
	if first {
		close(c.closed)
	}
	c.fail(errors.New("closed by this side"))
	c.wg.Wait()
	return nil
}

// fail ends the connection for the reason given, once.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrClosed, reason)
	pending := c.pending
	c.pending = nil
	c.queue = nil
	c.tail.end()
	close(c.done)
	c.mu.Unlock()
	_ = c.rw.Close() // the reason is known already
	for _, ch := range pending {
		ch <- reply{err: c.err}
	}
}

// Execute sends one command and waits for its answer, which it stores in out
// unless out is nil. args is anything that marshals to a JSON object, or nil. Any
// number of commands may be in flight.
//
// Errors: *Error when QEMU refuses, ErrClosed when the connection is over, and
// ctx's own. When ctx ends QEMU may still carry the command out; the connection stays usable.
func (c *Conn) Execute(ctx context.Context, command string, args, out any) error {
	id, answer, err := c.send(command, args)
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case r := <-answer:
		if r.err != nil {
			return fmt.Errorf("QMP %s: %w", command, r.err)
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(r.value, out); err != nil {
			return fmt.Errorf("QMP %s: parse answer: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		c.forget(id)
		return fmt.Errorf("QMP %s: %w", command, ctx.Err())
	}
}

func (c *Conn) send(command string, args any) (uint64, <-chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.nextID++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, c.nextID})
	if err != nil {
		return 0, nil, fmt.Errorf("marshal arguments: %w", err)
	}
	answer := make(chan reply, 1)
	c.pending[c.nextID] = answer
	c.queue = append(c.queue, request{c.nextID, append(line, '\n')})
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return c.nextID, answer, nil
}

// forget drops a command whose caller is gone: from the queue if it was not
// written yet, otherwise its answer will find nobody.
func (c *Conn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
	for i, r := range c.queue {
		if r.id == id {
			c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
			return
		}
	}
}

func (c *Conn) write() {
	defer c.wg.Done()
	for {
		select {
		case <-c.wake:
		case <-c.done:
			return
		}
		for line := c.dequeue(); line != nil; line = c.dequeue() {
			if _, err := c.rw.Write(line); err != nil {
				c.fail(err)
				return
			}
		}
	}
}

func (c *Conn) dequeue() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return nil
	}
	line := c.queue[0].line
	c.queue = c.queue[1:]
	return line
}

// read takes messages until the connection ends. A JSON decoder needs no line
// ends and has no limit of length.
func (c *Conn) read() {
	defer c.wg.Done()
	dec := json.NewDecoder(c.rw)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			c.fail(fmt.Errorf("read: %w", err))
			return
		}
		if err := c.dispatch(&m); err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Conn) dispatch(m *message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Greeting != nil:
		return c.greet(m)
	case m.Event != "":
		t := time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
		c.publish(Event{Name: m.Event, Data: m.Data, Time: t})
	case m.ID == nil && m.Error != nil:
		// QEMU could not read what we sent; nobody can know which command it was.
		return fmt.Errorf("QEMU refused a message without naming it: %w", m.Error)
	case m.ID == nil:
		return errors.New("QEMU sent a message that is neither greeting, answer nor event")
	default:
		c.answer(m)
	}
	return nil
}

func (c *Conn) greet(m *message) error {
	select {
	case <-c.greeted:
		return errors.New("QEMU greeted twice")
	default:
	}
	c.version = m.Greeting.Version.QEMU
	close(c.greeted)
	return nil
}

func (c *Conn) answer(m *message) {
	ch := c.pending[*m.ID]
	if ch == nil {
		return // its caller went away
	}
	delete(c.pending, *m.ID)
	r := reply{value: m.Return}
	if m.Error != nil {
		r = reply{err: m.Error}
	}
	ch <- r
}
