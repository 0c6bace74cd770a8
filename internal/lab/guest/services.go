package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/lab/guest/ledger"
)

// Guest is the services of one boot, without anything that only an init can do.
type Guest struct {
	config   Config
	boot     ledger.BootID
	booted   time.Time
	ledger   *LedgerService
	dirty    *Dirtier
	maxDirty int // MiB
	faults   Faults
	silent   atomic.Bool // the guest agent
}

// New puts the services of a boot together. maxDirtyMiB bounds what /dirty may use of the guest's memory; a fault that is nil cannot be asked for.
func New(c Config, boot ledger.BootID, booted time.Time, l *LedgerService, maxDirtyMiB int, f Faults) *Guest {
	return &Guest{config: c, boot: boot, booted: booted, ledger: l, dirty: NewDirtier(), maxDirty: maxDirtyMiB, faults: f}
}

// Listeners are where the services listen.
type Listeners struct {
	Echo   net.PacketConn
	HTTP   net.Listener
	Ledger net.Listener
}

// Listen opens the guest's ports on host, "" for all addresses.
func Listen(ctx context.Context, host string) (Listeners, error) {
	var l Listeners
	var lc net.ListenConfig
	var err error
	if l.Echo, err = lc.ListenPacket(ctx, "udp4", fmt.Sprintf("%s:%d", host, EchoPort)); err != nil {
		return l, fmt.Errorf("listen for echo: %w", err)
	}
	if l.HTTP, err = lc.Listen(ctx, "tcp4", fmt.Sprintf("%s:%d", host, HTTPPort)); err != nil {
		return l, fmt.Errorf("listen for http: %w", err)
	}
	if l.Ledger, err = lc.Listen(ctx, "tcp4", fmt.Sprintf("%s:%d", host, LedgerPort)); err != nil {
		return l, fmt.Errorf("listen for ledger: %w", err)
	}
	return l, nil
}

// Serve runs all services until ctx is done or one of them ends, and returns
// the first error. It closes the listeners.
func (g *Guest) Serve(ctx context.Context, l Listeners) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	run := func(name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				cancel(fmt.Errorf("serve %s: %w", name, err))
			}
		})
	}
	run("echo", func() error { return echo(ctx, l.Echo) })
	run("http", func() error { return serveHTTP(ctx, l.HTTP, g.Handler()) })
	run("ledger", func() error { return g.ledger.Serve(ctx, l.Ledger) })
	wg.Go(func() { g.dirty.Run(ctx) })
	<-ctx.Done()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("http: %w", err)
	}
	return nil
}

// echo sends every datagram back. Errors of single datagrams (the network is
// not up yet, the sender has gone) are none of its business.
func echo(ctx context.Context, conn net.PacketConn) error {
	defer func() { _ = conn.Close() }() // nothing waits in it: a datagram is sent when it is written
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read datagram: %w", err)
		}
		_, _ = conn.WriteTo(buf[:n], from)
	}
}
