package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
)

// inNamespace moves the test's thread into a network namespace of its own. The
// thread is never given back, so that nothing else runs in it.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEnsureTapMakesAnUplinkOfTheBridgeAndTwiceIsOnce(t *testing.T) {
	inNamespace(t)
	ctx := t.Context()
	for range 2 {
		must(t, EnsureBridge(ctx, "vmbr0"))
		must(t, EnsureTap(ctx, "tap100i0", "vmbr0", 1400))
	}
	tap, bridge := link(t, "tap100i0").Attrs(), link(t, "vmbr0").Attrs()
	if tap.MasterIndex != bridge.Index || tap.MTU != 1400 || tap.RawFlags&1 == 0 {
		t.Errorf("tap: master %d, MTU %d, flags %x; want %d, 1400 and up", tap.MasterIndex, tap.MTU, tap.RawFlags, bridge.Index)
	}
	if got := tap.HardwareAddr[0]; got != 0xfe {
		t.Errorf("the tap's address begins with %02x, want fe", got)
	}
	ok, err := BridgeExists(ctx, "vmbr0")
	if err != nil || !ok {
		t.Errorf("BridgeExists: %v, error %v", ok, err)
	}
	for range 2 {
		must(t, RemoveTap(ctx, "tap100i0"))
	}
	if _, err := netlink.LinkByName("tap100i0"); err == nil {
		t.Error("the tap is still there")
	}
}

func TestABridgeForwardsAtOnceAndKeepsItsAddress(t *testing.T) {
	inNamespace(t)
	ctx := t.Context()
	must(t, EnsureBridge(ctx, "vmbr0"))
	before := link(t, "vmbr0").Attrs().HardwareAddr.String()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "low"
	attrs.HardwareAddr = []byte{2, 0, 0, 0, 0, 1}
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}))
	must(t, netlink.LinkSetUp(link(t, "other")))
	must(t, netlink.LinkSetMaster(link(t, "low"), link(t, "vmbr0")))
	must(t, netlink.LinkSetUp(link(t, "low")))
	if after := link(t, "vmbr0").Attrs().HardwareAddr.String(); after != before {
		t.Errorf("the bridge's address became %s, want %s", after, before)
	}
	start := time.Now()
	for portState(t, "low") != forwarding {
		if time.Since(start) > time.Second {
			t.Fatalf("the port is in state %d after a second, want forwarding", portState(t, "low"))
		}
	}
}

// forwarding is BR_STATE_FORWARDING.
const forwarding = 3

// portState asks the bridge for the state of one of its ports.
func portState(t *testing.T, port string) uint8 {
	t.Helper()
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	must(t, err)
	for _, msg := range msgs {
		if int(nl.DeserializeIfInfomsg(msg).Index) != link(t, port).Attrs().Index {
			continue
		}
		attrs, err := nl.ParseRouteAttr(msg[unix.SizeofIfInfomsg:])
		must(t, err)
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK != unix.IFLA_PROTINFO {
				continue
			}
			nested, err := nl.ParseRouteAttr(a.Value)
			must(t, err)
			for _, n := range nested {
				if n.Attr.Type == nl.IFLA_BRPORT_STATE {
					return n.Value[0]
				}
			}
		}
	}
	return 0
}

func TestNamesAreChecked(t *testing.T) {
	inNamespace(t)
	ctx := t.Context()
	must(t, EnsureBridge(ctx, "vmbr0"))
	for name, tc := range map[string]struct {
		err  error
		want error
	}{
		"no such bridge":      {EnsureTap(ctx, "tap100i0", "vmbr9", 0), model.ErrNotFound},
		"a long name":         {EnsureTap(ctx, "tap100000000000i0", "vmbr0", 0), model.ErrInvalid},
		"a bridge as tap":     {EnsureTap(ctx, "vmbr0", "vmbr0", 0), model.ErrInvalid},
		"loopback as bridge":  {EnsureBridge(ctx, "lo"), model.ErrInvalid},
		"remove what is none": {RemoveTap(ctx, "vmbr0"), model.ErrInvalid},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: error %v, want %v", name, tc.err, tc.want)
		}
	}
	if ok, err := BridgeExists(ctx, "vmbr9"); ok || err != nil {
		t.Errorf("BridgeExists of none: %v, error %v", ok, err)
	}
}

// card makes a pair of interfaces with an address on the first, and returns the other's name.
func card(t *testing.T, name, address string) string {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "x"}))
	addr, err := netlink.ParseAddr(address + "/24")
	must(t, err)
	must(t, netlink.AddrAdd(link(t, name), addr))
	must(t, netlink.LinkSetUp(link(t, name)))
	must(t, netlink.LinkSetUp(link(t, name+"x")))
	return name + "x"
}

func endpoints(t *testing.T) []string {
	t.Helper()
	m, err := openMultipath(t.Context())
	must(t, err)
	list, err := m.endpoints()
	must(t, err)
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s flags %d", e.addr, e.flags&(flagSignal|flagSubflow)))
	}
	return out
}

func needMultipath(t *testing.T) {
	t.Helper()
	if _, err := openMultipath(t.Context()); errors.Is(err, ErrNoMultipath) {
		t.Skip(err)
	}
}

func TestEnableMultipathIsIdempotent(t *testing.T) {
	inNamespace(t)
	needMultipath(t)
	card(t, "e1", "10.9.1.1")
	card(t, "e2", "10.9.2.1")
	addrs := []netip.Addr{netip.MustParseAddr("10.9.1.1"), netip.MustParseAddr("10.9.2.1")}
	for range 2 {
		must(t, EnableMultipath(t.Context(), addrs))
		if d := cmp.Diff([]string{"10.9.1.1 flags 1", "10.9.2.1 flags 1"}, endpoints(t)); d != "" {
			t.Errorf("endpoints (-want +got):\n%s", d)
		}
	}
	if err := EnableMultipath(t.Context(), []netip.Addr{netip.MustParseAddr("10.9.3.1")}); !errors.Is(err, errNoInterface) {
		t.Errorf("an address that no interface has: error %v, want errNoInterface", err)
	}
}

func TestCarrierOfABridgeIsThatOfItsCardsNotOfItsGuests(t *testing.T) {
	inNamespace(t)
	ctx := t.Context()
	must(t, EnsureBridge(ctx, "vmbr0"))
	addr, err := netlink.ParseAddr("10.9.4.1/24")
	must(t, err)
	must(t, netlink.AddrAdd(link(t, "vmbr0"), addr))
	far := card(t, "e4", "10.9.5.1")
	must(t, netlink.LinkSetMaster(link(t, "e4"), link(t, "vmbr0")))
	must(t, EnsureTap(ctx, "tap100i0", "vmbr0", 0))
	check := func(want bool) {
		t.Helper()
		got, err := hasCarrier(netip.MustParseAddr("10.9.4.1"))
		if err != nil || got != want {
			t.Errorf("carrier %v, error %v; want %v", got, err, want)
		}
	}
	check(true)
	must(t, netlink.LinkSetDown(link(t, far)))
	check(false)
}

func TestKeepMultipathWithdrawsAnAddressWhileItsLinkIsDown(t *testing.T) {
	inNamespace(t)
	needMultipath(t)
	far1, far2 := card(t, "e1", "10.9.1.1"), card(t, "e2", "10.9.2.1")
	const first, second = "10.9.1.1 flags 1", "10.9.2.1 flags 1"
	links := []followed{{addr: netip.MustParseAddr("10.9.1.1")}, {addr: netip.MustParseAddr("10.9.2.1")}}
	now := time.Now()
	follow := func(want ...string) (settles bool) {
		t.Helper()
		settled := followCarriers(t.Context(), links, now, slog.New(slog.DiscardHandler))
		got := map[string]bool{}
		for _, e := range endpoints(t) {
			got[e] = true
		}
		wanted := map[string]bool{}
		for _, e := range want {
			wanted[e] = true
		}
		if d := cmp.Diff(wanted, got); d != "" {
			t.Errorf("endpoints (-want +got):\n%s", d)
		}
		return settled != nil
	}
	down := func(name string) { must(t, netlink.LinkSetDown(link(t, name))) }
	up := func(name string) { must(t, netlink.LinkSetUp(link(t, name))) }
	follow(first, second)
	down(far1)
	follow(second)
	up(far1)
	if !follow(second) {
		t.Error("nobody looks again when the link has settled")
	}
	now = now.Add(linkSettle)
	follow(first, second)

	// The last path stays, whichever network returns first, until the other one is used again.
	down(far1)
	follow(second)
	down(far2)
	follow(second)
	up(far1)
	follow(first, second)
	follow(first)
	up(far2)
	now = now.Add(linkSettle)
	follow(first)
	now = now.Add(linkSettle)
	follow(first, second)
	must(t, netlink.LinkDel(link(t, "e1")))
	follow(second)
}

func TestKeepMultipathEndsWithItsContext(t *testing.T) {
	inNamespace(t)
	needMultipath(t)
	card(t, "e1", "10.9.1.1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	must(t, KeepMultipath(ctx, []netip.Addr{netip.MustParseAddr("10.9.1.1")}, slog.New(slog.DiscardHandler)))
	if d := cmp.Diff([]string{"10.9.1.1 flags 1"}, endpoints(t)); d != "" {
		t.Errorf("endpoints (-want +got):\n%s", d)
	}
}
