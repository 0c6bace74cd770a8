package network

import (
	"context"
	"errors"
	"net"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// DefaultStagger is how long a Dialer waits for one address before it also tries
// the next: longer than a connection takes in one data centre, far shorter than a dead network's time-out.
const DefaultStagger = 200 * time.Millisecond

// Dialer connects to a host that has several addresses. The zero value works. It is safe for concurrent use.
type Dialer struct {
	// Stagger is the time between the starts of two attempts; 0 means DefaultStagger.
	Stagger time.Duration
	// Dial makes one attempt; nil means net.Dialer, which uses multipath TCP if the program has it on.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// attempt is the outcome of dialling one address.
type attempt struct {
	conn net.Conn
	err  error
}

// DialAny connects to the first of addrs ("host:port") that answers. It starts with the first one and goes on to
// the next after Stagger, or at once when an attempt fails; connections that come second are closed. All attempts
// have ended when it returns, or end with ctx's deadline in the background of a success.
// Errors: the context's, model.ErrUnavailable with each address' reason.
func (d *Dialer) DialAny(ctx context.Context, network string, addrs []string) (net.Conn, error) {
	if len(addrs) == 0 {
		return nil, model.Errorf(model.ErrUnavailable, "connect: no address is known")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt, len(addrs))
	next, pending := 0, 0
	start := func() {
		addr := addrs[next]
		next, pending = next+1, pending+1
		go func() {
			conn, err := d.dial(ctx, network, addr)
			results <- attempt{conn, err}
		}()
	}
	start()
	timer := time.NewTimer(d.stagger())
	defer timer.Stop()
	var errs []error
	for {
		select {
		case <-timer.C:
			if next < len(addrs) {
				start()
				timer.Reset(d.stagger())
			}
		case r := <-results:
			pending--
			if r.err == nil {
				cancel()
				drain(results, pending)
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if next < len(addrs) {
				start()
				timer.Reset(d.stagger())
			} else if pending == 0 {
				return nil, unreachable(ctx, errs)
			}
		}
	}
}

// drain waits for the attempts that were cancelled, and closes what they made.
func drain(results <-chan attempt, pending int) {
	for range pending {
		if r := <-results; r.conn != nil {
			_ = r.conn.Close()
		}
	}
}

func unreachable(ctx context.Context, errs []error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return model.Errorf(model.ErrUnavailable, "connect: %v", errors.Join(errs...))
}

func (d *Dialer) stagger() time.Duration {
	if d.Stagger > 0 {
		return d.Stagger
	}
	return DefaultStagger
}

func (d *Dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.Dial != nil {
		return d.Dial(ctx, network, addr)
	}
	var nd net.Dialer
	return nd.DialContext(ctx, network, addr)
}
