// Package network makes the kernel's network what a node needs: bridges for guests, a tap
// per virtual network card, multipath TCP over the node's two networks, and a dialer that
// tries the addresses of both.
//
// All Ensure functions are idempotent: they describe what is wanted and change what differs. The
// package talks to the kernel by netlink in the network namespace of the calling thread; it decides nothing
// about which guest has which card, and it assigns no addresses.
//
// Invariant: a bridge made here forwards at once (no listening and learning delay) and keeps its hardware
// address whatever ports come and go. Start reading with [EnsureBridge] and [EnableMultipath].
package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
)

// maxNameLen is the longest interface name that the kernel takes.
const maxNameLen = unix.IFNAMSIZ - 1

// BridgeExists reports whether a bridge of that name is there. model.ErrInvalid if the name belongs to another kind of interface.
func BridgeExists(ctx context.Context, name string) (bool, error) {
	link, err := find(ctx, name)
	if err != nil || link == nil {
		return false, err
	}
	if link.Type() != "bridge" {
		return false, model.Invalidf("bridge", "%s is a %s, not a bridge: choose another name", name, link.Type())
	}
	return true, nil
}

// EnsureBridge makes the bridge if it is missing, sets forward delay 0 and spanning tree off, and brings it up.
func EnsureBridge(ctx context.Context, name string) error {
	if err := ensureBridge(ctx, name); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return nil
}

func ensureBridge(ctx context.Context, name string) error {
	if err := checkName("bridge", name); err != nil {
		return err
	}
	ok, err := BridgeExists(ctx, name)
	if err != nil {
		return err
	}
	if !ok {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		// An address given explicitly stays; otherwise the kernel takes the lowest of
		// the ports', and every neighbour's ARP entry is wrong when a guest starts.
		attrs.HardwareAddr = randomHardwareAddr(0x52)
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	link, err := mustFind(ctx, name)
	if err != nil {
		return err
	}
	if err := setForwarding(link.Attrs().Index); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// setForwarding sets what netlink.Bridge has no fields for: a port that comes up stays 15 s in
// learning unless forward_delay is 0.
func setForwarding(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set forward delay 0: %w", err)
	}
	return nil
}

// EnsureTap makes the persistent tap device name, puts it into bridge, sets its MTU (0 leaves it) and brings
// it up. Errors: model.ErrNotFound if the bridge is missing, model.ErrInvalid.
func EnsureTap(ctx context.Context, name, bridge string, mtu int) error {
	if err := ensureTap(ctx, name, bridge, mtu); err != nil {
		return fmt.Errorf("make tap %s: %w", name, err)
	}
	return nil
}

func ensureTap(ctx context.Context, name, bridge string, mtu int) error {
	if err := checkName("tap", name); err != nil {
		return err
	}
	if ok, err := BridgeExists(ctx, bridge); err != nil {
		return err
	} else if !ok {
		return model.Errorf(model.ErrNotFound, "bridge %s does not exist on this node", bridge)
	}
	master, err := mustFind(ctx, bridge)
	if err != nil {
		return err
	}
	tap, err := findOrAddTap(ctx, name)
	if err != nil {
		return err
	}
	if mtu > 0 && tap.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(tap, mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", mtu, err)
		}
	}
	if tap.Attrs().MasterIndex != master.Attrs().Index {
		if err := netlink.LinkSetMasterByIndex(tap, master.Attrs().Index); err != nil {
			return fmt.Errorf("add to bridge %s: %w", bridge, err)
		}
	}
	return netlink.LinkSetUp(tap)
}

func findOrAddTap(ctx context.Context, name string) (netlink.Link, error) {
	tap, err := find(ctx, name)
	if err != nil {
		return nil, err
	}
	if tap == nil {
		if err := addTap(name); err != nil {
			return nil, err
		}
		if tap, err = mustFind(ctx, name); err != nil {
			return nil, err
		}
	}
	if tap.Type() != "tuntap" {
		return nil, model.Invalidf("tap", "%s is a %s, not a tap: choose another name", name, tap.Type())
	}
	return tap, nil
}

func addTap(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	for _, f := range tap.Fds {
		_ = f.Close() // the device is persistent; QEMU opens it anew
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	// The host's end must not have the guest's address, and a high one does not win the bridge's choice.
	return netlink.LinkSetHardwareAddr(link, randomHardwareAddr(0xfe))
}

// RemoveTap deletes the tap. One that does not exist is no error.
func RemoveTap(ctx context.Context, name string) error {
	link, err := find(ctx, name)
	if err != nil || link == nil {
		return err
	}
	if link.Type() != "tuntap" {
		return fmt.Errorf("remove tap: %w", model.Invalidf("tap", "%s is a %s, not a tap", name, link.Type()))
	}
	if err := netlink.LinkDel(link); err != nil && !isGone(err) {
		return fmt.Errorf("remove tap %s: %w", name, err)
	}
	return nil
}

// find returns nil, nil for an interface that does not exist.
func find(ctx context.Context, name string) (netlink.Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if isGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return link, nil
}

func mustFind(ctx context.Context, name string) (netlink.Link, error) {
	link, err := find(ctx, name)
	if err == nil && link == nil {
		err = model.Errorf(model.ErrNotFound, "interface %s does not exist", name)
	}
	return link, err
}

func isGone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxNameLen {
		return model.Invalidf(what, "%q is not an interface name: use 1 to %d characters", name, maxNameLen)
	}
	return nil
}

// randomHardwareAddr makes an address whose first byte is first, with the bit set that marks it as given locally.
// Random, not derived from the name: all nodes have a bridge of the same name on one network.
func randomHardwareAddr(first byte) net.HardwareAddr {
	addr := make(net.HardwareAddr, 6)
	_, _ = rand.Read(addr) // never fails: crypto/rand ends the program instead
	addr[0] = first
	return addr
}
