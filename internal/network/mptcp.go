package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoMultipath means that the kernel has no multipath TCP. Connections work, each over one network only.
var ErrNoMultipath = errors.New("this kernel has no multipath TCP")

var errNoInterface = errors.New("no interface of this node has this address")

// From linux/mptcp_pm.h (family "mptcp_pm", version 1).
const (
	mptcpFamily  = "mptcp_pm"
	mptcpVersion = 1

	cmdAddAddr   = 1
	cmdDelAddr   = 2
	cmdGetAddr   = 3
	cmdSetLimits = 5
	cmdGetLimits = 6

	attrAddr        = 1 // nested
	attrRcvAddAddrs = 2
	attrSubflows    = 3

	addrFamily  = 1
	addrID      = 2
	addrIPv4    = 3
	addrIPv6    = 4
	addrFlags   = 6
	addrIfIndex = 7

	flagSignal  = 1 << 0
	flagSubflow = 1 << 1
	// flagImplicit marks an endpoint that the kernel made because a connection came in over an address that was none.
	flagImplicit = 1 << 4
)

// maxPaths bounds extra paths per connection and announced addresses accepted: four pairs of
// two addresses on each side, and the kernel takes 8 at most.
const maxPaths = 4

// endpointFlags: each node is client of some connections and server of others. A
// server announces its other address (signal); that alone makes the client open the second path.
const endpointFlags = flagSignal

// endpoint is one local address that the kernel uses for multipath.
type endpoint struct {
	id      uint8
	addr    netip.Addr
	flags   uint32
	ifIndex int32
}

// EnableMultipath makes the node's addresses, one in each network, endpoints of multipath TCP, so that every
// connection with MPTCP between two such nodes has a path over each network. Endpoints of other addresses stay.
// It is idempotent. KeepMultipath does the same and follows the links. Errors: ErrNoMultipath; an address that no interface has.
func EnableMultipath(ctx context.Context, addrs []netip.Addr) error {
	family, err := openMultipath(ctx)
	if err != nil {
		return err
	}
	if err := family.ensureLimits(); err != nil {
		return fmt.Errorf("set multipath limits: %w", err)
	}
	preferFastSwitchover()
	have, err := family.endpoints()
	if err != nil {
		return fmt.Errorf("list multipath endpoints: %w", err)
	}
	for _, a := range addrs {
		if err := family.ensure(have, a.Unmap()); err != nil {
			return fmt.Errorf("make %s a multipath endpoint: %w", a, err)
		}
	}
	return nil
}

// multipath is the kernel's path manager as a generic netlink family.
type multipath struct{ id uint16 }

func openMultipath(ctx context.Context) (multipath, error) {
	if err := ctx.Err(); err != nil {
		return multipath{}, err
	}
	req := nl.NewNetlinkRequest(nl.GENL_ID_CTRL, 0)
	req.AddData(genlHeader{nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION})
	req.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(mptcpFamily)))
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if errors.Is(err, unix.ENOENT) {
		return multipath{}, ErrNoMultipath
	}
	if err != nil {
		return multipath{}, fmt.Errorf("look up the kernel's multipath TCP: %w", err)
	}
	for _, msg := range msgs {
		attrs, err := nl.ParseRouteAttr(msg[nl.SizeofGenlmsg:])
		if err != nil {
			return multipath{}, fmt.Errorf("look up the kernel's multipath TCP: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == nl.GENL_CTRL_ATTR_FAMILY_ID {
				return multipath{id: nl.NativeEndian().Uint16(a.Value)}, nil
			}
		}
	}
	return multipath{}, ErrNoMultipath
}

// genlHeader is struct genlmsghdr: command, version, two bytes reserved. The library's own
// nl.Genlmsg lacks these two and sends whatever stands behind it in memory.
type genlHeader [nl.SizeofGenlmsg]byte

// Len implements nl.NetlinkRequestData.
func (h genlHeader) Len() int { return len(h) }

// Serialize implements nl.NetlinkRequestData.
func (h genlHeader) Serialize() []byte { return h[:] }

func (m multipath) request(cmd uint8, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(m.id), flags)
	req.AddData(genlHeader{cmd, mptcpVersion})
	return req
}

func (m multipath) ensureLimits() error {
	msgs, err := m.request(cmdGetLimits, 0).Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return err
	}
	accept, subflows := uint32(0), uint32(0)
	for _, msg := range msgs {
		attrs, err := nl.ParseRouteAttr(msg[nl.SizeofGenlmsg:])
		if err != nil {
			return err
		}
		for _, a := range attrs {
			switch a.Attr.Type {
			case attrRcvAddAddrs:
				accept = nl.NativeEndian().Uint32(a.Value)
			case attrSubflows:
				subflows = nl.NativeEndian().Uint32(a.Value)
			}
		}
	}
	if accept >= maxPaths && subflows >= maxPaths {
		return nil
	}
	req := m.request(cmdSetLimits, unix.NLM_F_ACK)
	req.AddData(nl.NewRtAttr(attrRcvAddAddrs, nl.Uint32Attr(max(accept, maxPaths))))
	req.AddData(nl.NewRtAttr(attrSubflows, nl.Uint32Attr(max(subflows, maxPaths))))
	_, err = req.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

func (m multipath) endpoints() ([]endpoint, error) {
	msgs, err := m.request(cmdGetAddr, unix.NLM_F_DUMP).Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, err
	}
	var out []endpoint
	for _, msg := range msgs {
		attrs, err := nl.ParseRouteAttr(msg[nl.SizeofGenlmsg:])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK != attrAddr {
				continue
			}
			e, err := parseEndpoint(a.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
	}
	return out, nil
}

func parseEndpoint(b []byte) (endpoint, error) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return endpoint{}, err
	}
	var e endpoint
	for _, a := range attrs {
		switch a.Attr.Type {
		case addrID:
			e.id = a.Value[0]
		case addrIPv4, addrIPv6:
			e.addr, _ = netip.AddrFromSlice(a.Value)
		case addrFlags:
			e.flags = nl.NativeEndian().Uint32(a.Value)
		case addrIfIndex:
			e.ifIndex = int32(nl.NativeEndian().Uint32(a.Value))
		}
	}
	return e, nil
}

// ensure adds the endpoint for addr, replacing one that has another interface or other flags.
func (m multipath) ensure(have []endpoint, addr netip.Addr) error {
	index, err := interfaceOf(addr)
	if err != nil {
		return err
	}
	for _, e := range have {
		if e.addr != addr {
			continue
		}
		if e.flags&endpointFlags == endpointFlags && (e.ifIndex == 0 || e.ifIndex == index) {
			return nil
		}
		if e.flags&flagImplicit != 0 {
			break // the kernel replaces it; deleting it would close the paths that are there already
		}
		if err := m.send(cmdDelAddr, e); err != nil {
			return err
		}
	}
	return m.send(cmdAddAddr, endpoint{addr: addr, flags: endpointFlags, ifIndex: index})
}

func (m multipath) send(cmd uint8, e endpoint) error {
	family, attr := uint16(unix.AF_INET), addrIPv4
	if e.addr.Is6() {
		family, attr = unix.AF_INET6, addrIPv6
	}
	nested := nl.NewRtAttr(attrAddr|unix.NLA_F_NESTED, nil)
	nested.AddRtAttr(addrFamily, nl.Uint16Attr(family))
	nested.AddRtAttr(attr, e.addr.AsSlice())
	if cmd == cmdDelAddr {
		nested.AddRtAttr(addrID, []byte{e.id})
	}
	if cmd == cmdAddAddr {
		nested.AddRtAttr(addrFlags, nl.Uint32Attr(e.flags))
		nested.AddRtAttr(addrIfIndex, nl.Uint32Attr(uint32(e.ifIndex)))
	}
	req := m.request(cmd, unix.NLM_F_ACK)
	req.AddData(nested)
	_, err := req.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

// interfaceOf finds the interface that has addr.
func interfaceOf(addr netip.Addr) (int32, error) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	addrs, err := netlink.AddrList(nil, family)
	if err != nil {
		return 0, err
	}
	for _, a := range addrs {
		if got, ok := netip.AddrFromSlice(a.IP); ok && got.Unmap() == addr {
			return int32(a.LinkIndex), nil
		}
	}
	return 0, fmt.Errorf("%s: %w", addr, errNoInterface)
}
