package fencetest

import (
	"net"
	"slices"
	"sync"
	"testing"
)

// Relay passes datagrams between clients and a BMC, and lets a test see to what becomes of each answer.
type Relay struct {
	// Address is where clients send to.
	Address string

	conn   *net.UDPConn
	target string

	mu      sync.Mutex
	answers filter                  // guarded by mu
	asked   filter                  // guarded by mu
	clients map[string]*net.UDPConn // by the client's address; guarded by mu
}

// filter is what becomes of a datagram; the relay's mu is held.
type filter func([]byte) [][]byte

// StartRelay starts a relay to target on loopback; it ends with the test. A target of "" is a black hole.
func StartRelay(t *testing.T, target string) *Relay {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Address: conn.LocalAddr().String(), conn: conn, target: target, clients: map[string]*net.UDPConn{}}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = conn.Close()
		r.mu.Lock()
		for _, c := range r.clients {
			_ = c.Close()
		}
		r.mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() { r.forward(&wg) })
	return r
}

// Answers sets what clients get for each answer of the BMC; nil passes it on.
func (r *Relay) Answers(f func(answer []byte) [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = f
}

// Asked sets what the BMC gets for each datagram of a client; nil passes it on.
func (r *Relay) Asked(f func(question []byte) [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = f
}

func (r *Relay) forward(wg *sync.WaitGroup) {
	buf := make([]byte, 2048)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if r.target == "" {
			continue
		}
		upstream, err := r.upstream(from, wg)
		if err != nil {
			continue
		}
		for _, b := range r.pass(buf[:n], func() filter { return r.asked }) {
			_, _ = upstream.Write(b)
		}
	}
}

// pass calls one filter at a time, so that a test's filters may share what they know.
func (r *Relay) pass(b []byte, chosen func() filter) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	b = slices.Clone(b)
	if f := chosen(); f != nil {
		return f(b)
	}
	return [][]byte{b}
}

// upstream is the client's own connection to the BMC.
func (r *Relay) upstream(from net.Addr, wg *sync.WaitGroup) (*net.UDPConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.clients[from.String()]; ok {
		return c, nil
	}
	to, err := net.ResolveUDPAddr("udp4", r.target)
	if err != nil {
		return nil, err
	}
	c, err := net.DialUDP("udp4", nil, to)
	if err != nil {
		return nil, err
	}
	r.clients[from.String()] = c
	wg.Go(func() { r.back(c, from) })
	return c, nil
}

func (r *Relay) back(c *net.UDPConn, to net.Addr) {
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		for _, b := range r.pass(buf[:n], func() filter { return r.answers }) {
			_, _ = r.conn.WriteTo(b, to)
		}
	}
}
