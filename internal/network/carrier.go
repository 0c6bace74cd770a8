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
	state := make([]linkState, len(addrs))
	notices := updates
	for {
		followCarriers(ctx, addrs, state, log)
		select {
		case _, ok := <-notices:
			if !ok {
				log.Warn("the carrier of interfaces is only looked at now and then: the kernel's notices ended", "every", carrierCheck)
				notices = nil
			}
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// linkState is what was last done about an address.
type linkState int

const (
	unknown linkState = iota
	announced
	withdrawn
	dark // announced, and no network has a carrier
)

// followCarriers brings every endpoint in line with its carrier. When no network
// has one, nothing more is withdrawn: a connection that keeps a path goes on when the network returns, and
// one without any would have to be made anew.
func followCarriers(ctx context.Context, addrs []netip.Addr, state []linkState, log *slog.Logger) {
	up := make([]bool, len(addrs))
	for i, addr := range addrs {
		var err error
		if up[i], err = hasCarrier(addr); err != nil {
			logFollowed(log, addr, state[i], state[i], err)
			return
		}
	}
	if !slices.Contains(up, true) {
		for i := range state {
			if state[i] == announced {
				state[i] = dark
			}
		}
		return
	}
	for i, addr := range addrs {
		state[i] = followCarrier(ctx, addr, up[i], state[i], log)
	}
}

// followCarrier brings addr's endpoint in line with its carrier and returns the new state.
func followCarrier(ctx context.Context, addr netip.Addr, carrier bool, state linkState, log *slog.Logger) linkState {
	want := withdrawn
	if carrier {
		want = announced
	}
	if want == state {
		return state
	}
	var err error
	switch {
	case carrier:
		err = EnableMultipath(ctx, []netip.Addr{addr})
	default:
		err = withdraw(ctx, addr)
	}
	return logFollowed(log, addr, state, want, err)
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
