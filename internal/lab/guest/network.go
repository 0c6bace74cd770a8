package guest

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configureNetwork gives the guest its name and address. arp_notify makes the
// kernel announce the address, so that switches and neighbours learn at once where it is now.
func configureNetwork(ctx context.Context, c Config) error {
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_notify", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("set arp_notify: %w", err)
	}
	if err := waitFor(ctx, netIf, func() bool {
		_, err := netlink.LinkByName(netIf)
		return err == nil
	}); err != nil {
		return err
	}
	ip := &net.IPNet{IP: c.IP.Addr().AsSlice(), Mask: net.CIDRMask(c.IP.Bits(), 32)}
	for _, name := range []string{"lo", netIf} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
		if name == netIf {
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ip}); err != nil {
				return fmt.Errorf("set address %s: %w", ip, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	if !c.Gateway.IsValid() {
		return nil
	}
	if err := netlink.RouteReplace(&netlink.Route{Gw: c.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("set gateway %s: %w", c.Gateway, err)
	}
	return nil
}
