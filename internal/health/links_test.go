package health

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	core "sauh.dev/sauh/internal/core/health"
)

func TestTheCardsOfABridgeAreSeenAndGuestsTapsAreNone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread() // and never given back, so that nothing else runs in that namespace
	ns, err := netns.New()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	bridge := &netlink.Bridge{LinkAttrs: attrs("vmbr0")}
	must(t, netlink.LinkAdd(bridge))
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("vmbr1")}))
	must(t, netlink.LinkSetUp(bridge))
	add := func(l netlink.Link) {
		must(t, netlink.LinkAdd(l))
		must(t, netlink.LinkSetMaster(l, bridge))
		must(t, netlink.LinkSetUp(l))
	}
	add(&netlink.Veth{LinkAttrs: attrs("eth0"), PeerName: "switch0"})
	add(&netlink.Veth{LinkAttrs: attrs("fwpr100p0"), PeerName: "fwln100i0"})
	add(&netlink.Tuntap{LinkAttrs: attrs("tap100i0"), Mode: netlink.TUNTAP_MODE_TAP, Queues: 1})
	peer, err := netlink.LinkByName("switch0")
	must(t, err)
	card, err := netlink.LinkByName("eth0")
	must(t, err)

	want := func(there core.Card) {
		t.Helper()
		wanted := map[string]core.Bridge{"vmbr0": {There: true, Up: true, Cards: []core.Card{there}}, "vmbr1": {There: true}, "vmbr2": {}}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for late := time.After(5 * time.Second); ; { // the kernel's word follows the carrier after up to a second
			got, err := Bridges([]string{"vmbr0", "vmbr1", "vmbr2"})
			diff := cmp.Diff(wanted, got)
			if diff == "" && err == nil {
				return
			}
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("%v (-want +got):\n%s", err, diff)
			}
		}
	}
	want(core.Card{Name: "eth0", State: "lower-layer-down"})
	must(t, netlink.LinkSetUp(peer))
	want(core.Card{Name: "eth0", Carries: true, State: "up"})
	must(t, netlink.LinkSetDown(card))
	want(core.Card{Name: "eth0", State: "switched off"})
}
