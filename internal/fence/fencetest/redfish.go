package fencetest

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"

	"sauh.dev/sauh/internal/fence/fencetest/bmc"
)

// StartRedfish serves b on loopback until the test ends.
func StartRedfish(t *testing.T, b *bmc.Redfish) (address, fingerprint string) {
	t.Helper()
	return StartHandler(t, b)
}

// StartHandler serves h with TLS on loopback until the test ends.
func StartHandler(t *testing.T, h http.Handler) (address, fingerprint string) {
	t.Helper()
	cert, fingerprint, err := bmc.Certificate("bmc", net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := bmc.Serve(h, cert)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return l.Addr().String(), fingerprint
}

// Box is a machine of the tests.
type Box struct {
	// ID is its system UUID.
	ID string

	mu     sync.Mutex
	off    bool // guarded by mu
	orders int  // guarded by mu
}

// On is whether it has power.
func (b *Box) On() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.off }

// PowerOff switches it off.
func (b *Box) PowerOff(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off = true
	b.orders++
	return nil
}

// PowerOn switches it on.
func (b *Box) PowerOn(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off = false
	b.orders++
	return nil
}

// UUID is its system UUID.
func (b *Box) UUID() string { return b.ID }

// Orders is how often it was switched.
func (b *Box) Orders() int { b.mu.Lock(); defer b.mu.Unlock(); return b.orders }
