package network

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// answer is how a faked host behaves.
type answer struct {
	after time.Duration // negative: never
	err   error
}

// fakeConn notes whether it was closed.
type fakeConn struct {
	net.Conn
	addr   string
	closed bool
}

func (c *fakeConn) Close() error { c.closed = true; return nil }

// fakeDial answers for each address as told, and collects the connections it made.
func fakeDial(hosts map[string]answer, made *[]*fakeConn) *Dialer {
	var mu sync.Mutex
	return &Dialer{Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
		a := hosts[addr]
		if a.after < 0 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		time.Sleep(a.after) // in the bubble, and deaf to ctx as a connection that is just being made
		if a.err != nil {
			return nil, a.err
		}
		c := &fakeConn{addr: addr}
		mu.Lock()
		defer mu.Unlock()
		*made = append(*made, c)
		return c, nil
	}}
}

func TestDialerTakesTheFirstAddressThatAnswers(t *testing.T) {
	refused := errors.New("refused")
	for name, tc := range map[string]struct {
		hosts map[string]answer
		want  string
		after time.Duration
	}{
		"the first answers":              {map[string]answer{"a": {}, "b": {}}, "a", 0},
		"the first is dead":              {map[string]answer{"a": {after: -1}, "b": {}}, "b", 200 * time.Millisecond},
		"the first refuses":              {map[string]answer{"a": {err: refused}, "b": {}}, "b", 0},
		"the first is slow":              {map[string]answer{"a": {after: 250 * time.Millisecond}, "b": {after: -1}}, "a", 250 * time.Millisecond},
		"the second overtakes the first": {map[string]answer{"a": {after: 900 * time.Millisecond}, "b": {after: 100 * time.Millisecond}}, "b", 900 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var made []*fakeConn
				start := time.Now()
				conn, err := fakeDial(tc.hosts, &made).DialAny(t.Context(), "tcp", []string{"a", "b"})
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.(*fakeConn).addr; got != tc.want || time.Since(start) != tc.after {
					t.Errorf("connected to %s after %v, want %s after %v", got, time.Since(start), tc.want, tc.after)
				}
				for _, c := range made {
					if c.closed == (c == conn) {
						t.Errorf("connection to %s: closed %v", c.addr, c.closed)
					}
				}
			})
		})
	}
}

func TestDialerSaysWhyNothingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fakeDial(map[string]answer{"a": {err: errors.New("a is off")}, "b": {err: errors.New("b is off")}}, new([]*fakeConn))
		_, err := d.DialAny(t.Context(), "tcp", []string{"a", "b"})
		if !errors.Is(err, model.ErrUnavailable) || err.Error() != "connect: a is off\nb is off" {
			t.Errorf("error %v, want both reasons as ErrUnavailable", err)
		}
		if _, err := d.DialAny(t.Context(), "tcp", nil); !errors.Is(err, model.ErrUnavailable) {
			t.Errorf("no address: error %v, want ErrUnavailable", err)
		}
	})
}

func TestDialerEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		d := fakeDial(map[string]answer{"a": {after: -1}, "b": {after: -1}}, new([]*fakeConn))
		start := time.Now()
		if _, err := d.DialAny(ctx, "tcp", []string{"a", "b"}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("error %v after %v, want the deadline's after 1s", err, time.Since(start))
		}
	})
}
