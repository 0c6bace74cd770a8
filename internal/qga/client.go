package qga

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
)

const (
	// DefaultTimeout bounds a call whose context has no deadline: an agent that is well answers in milliseconds.
	DefaultTimeout = 5 * time.Second
	// delimiter goes before a message that the other side must be able to find after any rubbish: no JSON holds this byte.
	delimiter = 0xff
	// maxMessage bounds one answer in bytes, because what is inside a guest is not to be trusted. The longest that a real
	// agent gives is a file of 48 MiB, which is 64 MiB in base64.
	maxMessage = 80 << 20
	// maxID keeps a synchronization's number below what every JSON reader keeps exact.
	maxID = 1 << 53
)

// ErrSilent is in the chain of errors that mean: the port is there, and nobody inside the guest answers in
// time. No agent may be installed, or it hangs, or the guest does not run. model.ErrUnavailable is true of it as well.
var ErrSilent = fmt.Errorf("the guest agent does not answer: %w", model.ErrUnavailable)

// Error is the agent's refusal of a command.
type Error struct {
	Class string `json:"class"` // "GenericError", "CommandNotFound" …
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// Client asks the agent of one guest. It keeps no connection: QEMU serves one client of the port at a time, and between
// two calls others may have it. Safe for concurrent use; calls wait for one another. The zero value is of no use.
type Client struct {
	dial func(ctx context.Context) (net.Conn, error)
	busy chan struct{} // holds a token while a call is under way
	most int64         // maxMessage
}

// Open asks over the unix socket of QEMU's port at path. It does not connect yet, and there is nothing to close.
func Open(path string) *Client {
	return New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

// New asks over the connections that dial makes.
func New(dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{dial: dial, busy: make(chan struct{}, 1), most: maxMessage}
}

// Call has the agent carry one command out and stores what it returns in out unless out is nil. args is anything that
// marshals to a JSON object, or nil. It lasts as long as ctx, at most DefaultTimeout if that has no deadline.
//
// Errors: *Error if the agent refuses; ErrSilent if it does not answer, and then the command may still be carried out
// later; model.ErrNotFound if there is no port, which means that QEMU has ended or was started without one; ctx's
// own when it was cancelled.
func (c *Client) Call(ctx context.Context, command string, args, out any) error {
	answer, err := c.exchange(ctx, command, args)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: the agent's answer is not what was expected: %w", command, err)
	}
	return nil
}

// Ask is Call with the type of what is returned.
func Ask[T any](ctx context.Context, c *Client, command string, args any) (T, error) {
	var out T
	err := c.Call(ctx, command, args, &out)
	return out, err
}

func (c *Client) exchange(ctx context.Context, command string, args any) (json.RawMessage, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-ctx.Done():
		return nil, fmt.Errorf("another call to the guest agent is under way: %w", ctx.Err())
	}
	conn, err := c.dial(ctx)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, model.Errorf(model.ErrNotFound, "the guest has no port for a guest agent: it does not run, or was started without agent: 1 (%v)", err)
	} else if err != nil {
		return nil, explain(ctx, err)
	}
	defer conn.Close()
	// A call that ends closes the connection, so no later call can meet the rest of this one's answer on it.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	answer, err := dialogue(conn, command, args, c.most)
	if err != nil {
		return nil, explain(ctx, err)
	}
	return answer, nil
}

// explain tells a guest that does not answer from a caller that does not want to wait any more.
func explain(ctx context.Context, err error) error {
	var refusal *Error
	switch {
	case errors.As(err, &refusal):
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	}
	return fmt.Errorf("%w (%w)", ErrSilent, err)
}

// request is a message of the host's.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// dialogue synchronizes and then asks. What the port still held from an earlier call, whole messages or halves of them, comes
// before the delimiter or carries another number.
func dialogue(conn io.ReadWriter, command string, args any, most int64) (json.RawMessage, error) {
	id := rand.Int64N(maxID)
	hello, err := json.Marshal(request{"guest-sync-delimited", map[string]int64{"id": id}})
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(request{command, args})
	if err != nil {
		return nil, fmt.Errorf("marshal arguments: %w", err)
	}
	// The first byte ends whatever half a request an earlier call left in the agent's ear.
	if _, err := conn.Write(append(append([]byte{delimiter}, hello...), '\n')); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	if err := awaitSync(in, id); err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	var r reply
	if err := json.NewDecoder(io.LimitReader(in, most)).Decode(&r); err != nil {
		return nil, err
	}
	if r.Error != nil {
		return nil, r.Error
	}
	return r.Return, nil
}

// maxSync is longer than any answer to a synchronization, in bytes.
const maxSync = 64

// awaitSync reads up to the end of the line that answers the synchronization id. It keeps nothing of what comes before.
func awaitSync(in io.ByteReader, id int64) error {
	var line []byte
	delimited := false
	for {
		b, err := in.ReadByte()
		switch {
		case err != nil:
			return err
		case b == delimiter:
			line, delimited = line[:0], true
		case b == '\n':
			var r struct {
				Return *int64 `json:"return"`
			}
			if delimited && json.Unmarshal(line, &r) == nil && r.Return != nil && *r.Return == id {
				return nil
			}
			delimited = false
		case len(line) < maxSync:
			line = append(line, b)
		default:
			delimited = false
		}
	}
}
