package beacon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	core "sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

const (
	// receiveBuffer holds a second of what 255 members send, with the kernel's overhead of 1.1 KB each; the kernel may grant less.
	receiveBuffer = 2 << 20
	// sendWithin bounds how long a beat may wait for a full send buffer.
	sendWithin = core.SampleEvery / 2
)

// NetworkStatus is how this node listens on a network.
type NetworkStatus struct {
	Network core.Network
	Addr    netip.Addr // not valid: the network is not used
	// Listening: there is a socket. Err says why not, or why nothing can be sent.
	Listening bool
	Err       string
}

// link is a network: the socket bound to its address and to the interface that has it.
type link struct {
	b       *Beacon
	network core.Network
	addr    netip.Addr

	mu    sync.Mutex
	conn  *net.UDPConn // nil while there is none
	index int          // of the interface
	ended chan struct{}
	err   error
}

// ensure has a socket on the interface that has the address now. It returns, and keeps for the status, why there is none.
func (l *link) ensure(ctx context.Context) error {
	if !l.addr.IsValid() {
		return nil
	}
	index, err := interfaceOf(l.addr)
	l.mu.Lock()
	have, old := l.conn != nil && !isClosed(l.ended), l.index
	l.mu.Unlock()
	if have && err == nil && index == old {
		return nil
	}
	l.shut()
	if err == nil {
		err = l.open(ctx, index)
	}
	l.setErr(err)
	return err
}

// open makes the socket and starts its reader.
func (l *link) open(ctx context.Context, index int) error {
	at := netip.AddrPortFrom(l.addr, l.b.cfg.Port)
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	pc, err := lc.ListenPacket(ctx, "udp", at.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return model.Errorf(model.ErrBusy, "listen for beacons on %s/udp: another program has the port (a second agent?): end it", at)
	}
	if err != nil {
		return fmt.Errorf("listen for beacons on %s/udp: %w", at, err)
	}
	conn := pc.(*net.UDPConn)
	_ = conn.SetReadBuffer(receiveBuffer) // a smaller one loses datagrams only when the agent is kept from running
	ended := make(chan struct{})
	l.mu.Lock()
	l.conn, l.index, l.ended = conn, index, ended
	l.mu.Unlock()
	l.b.wg.Go(func() {
		defer close(ended)
		l.read(conn)
	})
	return nil
}

// read takes datagrams until the socket is closed or broken.
func (l *link) read(conn *net.UDPConn) {
	buf := make([]byte, core.MaxDatagram+1)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.setErr(fmt.Errorf("receive beacons on %s: %w", l.addr, err))
			return // ensure makes a new one
		}
		l.b.take(l.network, buf[:n])
	}
}

// shut closes the socket and waits for its reader.
func (l *link) shut() {
	l.mu.Lock()
	conn, ended := l.conn, l.ended
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // nothing is buffered; the reader ends
		<-ended
	}
}

// sendAll sends m to each member.
func (l *link) sendAll(m core.Message, members []Member, key Key) {
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	if conn == nil {
		return
	}
	m.Network = l.network
	err := conn.SetWriteDeadline(time.Now().Add(sendWithin))
	var sent, failed uint64
	for _, to := range members {
		addr := to.Addrs[l.network]
		if to.Name == m.From || !addr.IsValid() || l.network > 0 && addr == to.Addrs[0] {
			continue
		}
		m.To = to.Name
		if serr := l.send(conn, m, addr, key); serr != nil {
			failed, err = failed+1, serr
			continue
		}
		sent++
	}
	l.b.mu.Lock()
	l.b.counters.Sent += sent
	l.b.counters.SendErrors += failed
	l.b.mu.Unlock()
	if sent > 0 {
		err = nil // some member may have an address that cannot be reached
	}
	l.setErr(err)
}

// send completes and signs m at the last moment.
func (l *link) send(conn *net.UDPConn, m core.Message, addr netip.Addr, key Key) error {
	l.b.mu.Lock()
	m.Echo = l.b.detector.Echo(m.To)
	l.b.mu.Unlock()
	m.Sent = sys.BootTime()
	if _, err := conn.WriteToUDPAddrPort(core.Seal(m, key), netip.AddrPortFrom(addr, l.b.cfg.Port)); err != nil {
		return fmt.Errorf("send beacons from %s: %w", l.addr, err)
	}
	return nil
}

// setErr keeps what is wrong with the network and logs it when it begins and ends.
func (l *link) setErr(err error) {
	l.mu.Lock()
	was := l.err
	l.err = err
	l.mu.Unlock()
	switch {
	case err != nil && was == nil:
		l.b.cfg.Log.Warn("beacons do not pass", "network", l.network, "address", l.addr, "err", err)
	case err == nil && was != nil:
		l.b.cfg.Log.Info("beacons pass again", "network", l.network, "address", l.addr)
	}
}

func (l *link) status() NetworkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := NetworkStatus{Network: l.network, Addr: l.addr, Listening: l.conn != nil && !isClosed(l.ended)}
	if l.err != nil {
		s.Err = l.err.Error()
	}
	return s
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// interfaceOf finds the interface that has addr. All of 127.0.0.0/8 is the loopback's.
func interfaceOf(addr netip.Addr) (int, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		got, ok := netip.AddrFromSlice(a.IP)
		if got = got.Unmap(); ok && (got == addr || got.IsLoopback() && addr.IsLoopback()) {
			return a.LinkIndex, nil
		}
	}
	return 0, model.Errorf(model.ErrUnavailable, "no interface of this node has the address %s", addr)
}
