package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// Client talks to the guard of this node. Each call opens a connection of its
// own, so that neither a call that waits nor a guard that was restarted disturbs another. It is
// safe for concurrent use. Every method returns when ctx is done; model.ErrUnavailable means that no guard answers.
type Client struct{ socket string }

// New makes a client of the guard at socket. It connects to nothing.
func New(socket string) *Client { return &Client{socket: socket} }

// Dial makes a client and checks that a guard answers at socket.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c := New(socket)
	if _, err := c.Status(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Renew says that protected guests of epoch may run until deadline on CLOCK_BOOTTIME.
// An earlier deadline than the one known changes nothing. Errors: model.ErrConflict for an epoch that is over.
func (c *Client) Renew(ctx context.Context, epoch uint64, deadline time.Duration) error {
	_, err := c.call(ctx, request{Op: "renew", Epoch: epoch, DeadlineNS: int64(deadline)})
	return err
}

// Protect puts a group under the guard and makes its cgroup if it is missing; an empty Cgroup is
// the one in GuestsDir with the group's name. When it returned nil, and only then, a process may be started
// in that cgroup. It is idempotent. Errors: model.ErrUnavailable without a valid lease, ErrConflict for
// another epoch than the lease's, ErrBusy while the group is being killed, ErrInvalid.
func (c *Client) Protect(ctx context.Context, g lease.Group) error {
	_, err := c.call(ctx, request{Op: "protect", Group: &g})
	return err
}

// Unprotect takes a group out of the guard's hands; its processes and its cgroup stay as
// they are. A name that is not there is no error. model.ErrBusy while the group is frozen or being killed.
func (c *Client) Unprotect(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{Op: "unprotect", Name: name})
	return err
}

// Fence kills every group of an epoch before the one given and ends their lease.
// It returns nil when each is confirmed dead and its cgroup removed. It is idempotent.
func (c *Client) Fence(ctx context.Context, epoch uint64) error {
	_, err := c.call(ctx, request{Op: "fence", Epoch: epoch})
	return err
}

// Status asks the guard what it knows.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.call(ctx, request{Op: "status"})
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, fmt.Errorf("ask guard at %s for its status: it answered without one", c.socket)
	}
	return *r.Status, nil
}

func (c *Client) call(ctx context.Context, req request) (response, error) {
	if at, ok := ctx.Deadline(); ok {
		req.NotAfterNS = int64(sys.BootTime() + time.Until(at))
	}
	r, err := c.exchange(ctx, req)
	if err == nil {
		return r, r.err()
	}
	if ctx.Err() != nil {
		return response{}, fmt.Errorf("%s at guard %s: %w", req.Op, c.socket, ctx.Err())
	}
	return response{}, model.Errorf(model.ErrUnavailable, "the guard at %s does not answer: %v: start it with `sauh guard`", c.socket, err)
}

func (c *Client) exchange(ctx context.Context, req request) (response, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return response{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() { stop(); _ = conn.Close() }()
	line, err := json.Marshal(req)
	if err != nil {
		return response{}, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return response{}, err
	}
	answer, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return response{}, errors.Join(errors.New("the connection ended before the answer"), err)
	}
	var r response
	if err := json.Unmarshal(answer, &r); err != nil {
		return response{}, err
	}
	return r, nil
}
