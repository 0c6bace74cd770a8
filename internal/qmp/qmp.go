// Package qmp is a client of the QEMU Machine Protocol, the JSON dialogue over
// which a running QEMU is controlled and tells what happens to it.
//
// It knows messages, not their meaning: which commands make up a start or a
// migration is decided in internal/qemu and internal/agent/move. Package
// qmptest is a fake QEMU to test them with.
//
// Invariants: a message is written whole or the connection is over, so a
// context that ends never damages the connection; the reader never waits for
// whoever consumes events, and no event that arrives while a subscription
// exists is lost. Start reading with [Conn].
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// ErrClosed is in the chain of every error that a connection returns after it
// ended, whoever ended it. Its usual meaning is that QEMU is gone.
var ErrClosed = errors.New("QMP connection closed")

// Error is QEMU's refusal of a command; the connection goes on.
type Error struct {
	Class string `json:"class"` // "GenericError", "CommandNotFound", "DeviceNotFound" …
	Desc  string `json:"desc"`  // QEMU's sentence
}

func (e *Error) Error() string { return e.Desc }

// Event is something QEMU reports by itself, such as STOP, SHUTDOWN or MIGRATION.
type Event struct {
	Name string
	// Data is the event's JSON object, nil if it has none.
	Data json.RawMessage
	// Time is QEMU's own wall clock, in microseconds since 1970 at its finest.
	Time time.Time
}

// Version is the version of QEMU that the greeting states.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// String prints "10.0.2".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast reports whether v is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Dial connects to the monitor socket at path, waits for the greeting and
// negotiates. QEMU talks to one client at a time: while another one is
// connected, Dial waits until ctx ends. The caller closes the connection.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("dial QMP: %w", err)
	}
	return NewConn(ctx, c)
}

// NewConn speaks QMP over rw, which it owns from now on, and closes it when the
// negotiation does not succeed before ctx ends.
func NewConn(ctx context.Context, rw io.ReadWriteCloser) (*Conn, error) {
	c := &Conn{
		rw:      rw,
		done:    make(chan struct{}),
		closed:  make(chan struct{}),
		wake:    make(chan struct{}, 1),
		greeted: make(chan struct{}),
		pending: map[uint64]chan reply{},
		tail:    newNode(),
	}
	c.wg.Add(2)
	go c.read()
	go c.write()
	if err := c.negotiate(ctx); err != nil {
		return nil, fmt.Errorf("negotiate QMP: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

func (c *Conn) negotiate(ctx context.Context) error {
	select {
	case <-c.greeted:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.Execute(ctx, "qmp_capabilities", nil, nil)
}
