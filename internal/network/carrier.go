package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// carrierCheck is how often KeepMultipath looks without being told to: a notice of the kernel can get lost.
	carrierCheck = 5 * time.Second
	// linkSettle is how long a link must be back before its address is announced again. A switch that returns brings its
	// ports up one after the other, and an announcement that arrives before the other side's own port is up is
	// tried once, fails with no route to the host, and is not tried again: that connection would stay with one path.
	linkSettle = time.Second
	// staleLossFile: how many retransmission intervals a path may be silent before the kernel stops to use it. The
	// kernel's 4 are for lossy links; 1 is its advice for fast switch-over.
	staleLossFile = "/proc/sys/net/mptcp/stale_loss_cnt"
	// rtoMaxFile: the longest wait between two retransmissions, in milliseconds (Linux 6.15 and newer). The kernel's two
	// minutes mean that a network which was gone for eight seconds is found back after up to eight more.
	rtoMaxFile = "/proc/sys/net/ipv4/tcp_rto_max_ms"
	// closeFile: how many seconds a connection without any path lives on. In the kernel's 60 whoever waits on it
	// is not told that it is dead, and does not connect again.
	closeFile = "/proc/sys/net/mptcp/close_timeout"
)

// KeepMultipath keeps the node's addresses, one in each network, endpoints of multipath TCP for as long as
// their network has a carrier, until ctx is done. An address whose link goes down is withdrawn, which moves what was
// in flight to the other path at once instead of after several time-outs; when the link returns it is announced again, on
// connections that exist too. It returns nil when ctx is done, ErrNoMultipath, or what netlink refused at the start;
// later errors are logged and tried again.
func KeepMultipath(ctx context.Context, addrs []netip.Addr, log *slog.Logger) error {
	if _, err := openMultipath(ctx); err != nil {
		return err
	}
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("watch the carrier of interfaces: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // until the subscription has ended
		}
	}()
	ticker := time.NewTicker(carrierCheck)
	defer ticker.Stop()
	links := make([]followed, len(addrs))
	for i, addr := range addrs {
		links[i].addr = addr
	}
	notices := updates
	for {
		settled := followCarriers(ctx, links, time.Now(), log)
		select {
		case _, ok := <-notices:
			if !ok {
				log.Warn("the carrier of interfaces is only looked at now and then: the kernel's notices ended", "every", carrierCheck)
				notices = nil
			}
		case <-settled:
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// followed is an address and what was last done about it.
type followed struct {
	addr  netip.Addr
	state linkState
	up    bool      // its network has a carrier
	since time.Time // since then
}

type linkState int

const (
	unknown linkState = iota
	announced
	withdrawn
)

// followCarriers brings every endpoint in line with its carrier. It returns a
// channel that says when to look again for a link that has to settle, or nil.
//
// An address without a carrier is only withdrawn while another one is in use: a connection that keeps a path
// goes on when the network returns, and one without any would have to be made anew.
func followCarriers(ctx context.Context, links []followed, now time.Time, log *slog.Logger) <-chan time.Time {
	for i := range links {
		l := &links[i]
		up, err := hasCarrier(l.addr)
		if err != nil {
			logFollowed(log, l.addr, l.state, l.state, err)
			return nil
		}
		if up != l.up {
			l.up, l.since = up, now
		}
	}
	inUse := slices.ContainsFunc(links, func(l followed) bool { return l.up && l.state == announced })
	var settled <-chan time.Time
	for i := range links {
		l := &links[i]
		switch wait := linkSettle - now.Sub(l.since); {
		case !l.up && l.state != withdrawn && inUse:
			l.state = logFollowed(log, l.addr, l.state, withdrawn, withdraw(ctx, l.addr))
		case l.up && l.state == withdrawn && inUse && wait > 0:
			settled = time.After(wait)
		case l.up && l.state != announced:
			l.state = logFollowed(log, l.addr, l.state, announced, EnableMultipath(ctx, []netip.Addr{l.addr}))
		}
	}
	return settled
}

func logFollowed(log *slog.Logger, addr netip.Addr, from, to linkState, err error) linkState {
	if err != nil {
		log.Warn("multipath TCP does not follow the link", "address", addr, "error", err)
		return from
	}
	if from != to {
		log.Info("multipath TCP follows the link", "address", addr, "up", to == announced)
	}
	return to
}

// hasCarrier reports whether the interface that has addr is there and connected. A bridge
// with network cards is connected if one of the cards is: guests' taps do not count.
func hasCarrier(addr netip.Addr) (bool, error) {
	index, err := interfaceOf(addr)
	if errors.Is(err, errNoInterface) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == int(index) })
	if i < 0 {
		return false, nil
	}
	if links[i].Type() != "bridge" {
		return isUp(links[i]), nil
	}
	cards := slices.DeleteFunc(slices.Clone(links), func(l netlink.Link) bool {
		return l.Attrs().MasterIndex != int(index) || l.Type() == "tuntap"
	})
	if len(cards) == 0 {
		return isUp(links[i]), nil
	}
	return slices.ContainsFunc(cards, isUp), nil
}

func isUp(l netlink.Link) bool {
	const up = unix.IFF_UP | unix.IFF_LOWER_UP
	return l.Attrs().RawFlags&up == up
}

// withdraw takes addr's endpoint away and closes the paths over it.
func withdraw(ctx context.Context, addr netip.Addr) error {
	family, err := openMultipath(ctx)
	if err != nil {
		return err
	}
	have, err := family.endpoints()
	if err != nil {
		return fmt.Errorf("list multipath endpoints: %w", err)
	}
	for _, e := range have {
		if e.addr == addr.Unmap() {
			if err := family.send(cmdDelAddr, e); err != nil {
				return fmt.Errorf("withdraw multipath endpoint %s: %w", addr, err)
			}
		}
	}
	// The path that a connection began with has the id 0 whatever its address.
	err = family.send(cmdDelAddr, endpoint{addr: addr.Unmap()})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // what kernels say when there is none
		return fmt.Errorf("close multipath TCP's first paths over %s: %w", addr, err)
	}
	return nil
}

// preferFastSwitchover sets what a kernel may lack or a container may forbid; without it
// a silent path is only noticed later.
func preferFastSwitchover() {
	_ = os.WriteFile(staleLossFile, []byte("1"), 0o644)
	_ = os.WriteFile(rtoMaxFile, []byte("1000"), 0o644)
	_ = os.WriteFile(closeFile, []byte("1"), 0o644)
}
