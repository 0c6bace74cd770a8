package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"sauh.dev/sauh/internal/sys"
)

// switches are the two bridges in the room's network namespace, named as their
// networks, with one port a node, "n1-mgmt" and "n1-cluster".
type switches struct {
	reaper *sys.Reaper

	mu    sync.Mutex
	drops map[Drop]bool
}

func newSwitches(r *sys.Reaper) *switches {
	return &switches{reaper: r, drops: map[Drop]bool{}}
}

func portName(node string, n Network) string { return node + "-" + string(n) }

// hardwareAddress is locally administered: the network's and the node's number in it,
// so that a node has the same cards after each boot.
func hardwareAddress(n Network, index int) net.HardwareAddr {
	number := byte(1)
	if n == Cluster {
		number = 2
	}
	return net.HardwareAddr{0x02, 0x5a, 0x00, number, 0x00, byte(index)}
}

// roomIndex numbers the room's own end of a network.
const roomIndex = 254

func (s *switches) setUp() error {
	// The room speaks IPv4 only: no neighbour discovery of its own disturbs the networks.
	if err := setSysctls([][2]string{
		{"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/bridge/bridge-nf-call-iptables", "0"},
		{"net/bridge/bridge-nf-call-ip6tables", "0"},
		{"net/bridge/bridge-nf-call-arptables", "0"},
	}); err != nil {
		return err
	}
	if err := setUpLoopback(); err != nil {
		return err
	}
	for _, n := range []Network{Mgmt, Cluster} {
		if err := addBridge(string(n), hardwareAddress(n, roomIndex)); err != nil {
			return err
		}
	}
	return addAddress(string(Mgmt), RoomAddress)
}

// plug makes a node's two cards, eth0 and eth1, in the network namespace of pid, each with its port.
func (s *switches) plug(node string, index, pid int) error {
	for card, n := range []Network{Mgmt, Cluster} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = portName(node, n)
		veth := netlink.NewVeth(attrs)
		veth.PeerName = fmt.Sprintf("eth%d", card)
		veth.PeerHardwareAddr = hardwareAddress(n, index)
		veth.PeerNamespace = netlink.NsPid(pid)
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make port %s: %w", attrs.Name, err)
		}
		bridge, err := netlink.LinkByName(string(n))
		if err != nil {
			return fmt.Errorf("find switch %s: %w", n, err)
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return fmt.Errorf("plug %s into switch %s: %w", attrs.Name, n, err)
		}
	}
	return nil
}

// unplug removes a node's ports and with them its cards; ports that are not there are no error.
func (s *switches) unplug(node string) error {
	for _, n := range []Network{Mgmt, Cluster} {
		link, err := netlink.LinkByName(portName(node, n))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			return fmt.Errorf("remove port %s: %w", portName(node, n), err)
		}
	}
	return nil
}

// set switches a port on or off; a port that is not there is no error.
func (s *switches) set(node string, n Network, up bool) error {
	link, err := netlink.LinkByName(portName(node, n))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil && up {
		err = netlink.LinkSetUp(link)
	} else if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("switch port %s: %w", portName(node, n), err)
	}
	return nil
}

// drop adds to what is dropped.
func (s *switches) drop(drops []Drop) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[Drop]bool{}
	for d := range s.drops {
		wanted[d] = true
	}
	for _, d := range drops {
		wanted[d] = true
	}
	return s.apply(wanted)
}

func (s *switches) heal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.apply(map[Drop]bool{})
}

// apply needs mu. It replaces the whole table in one transaction.
func (s *switches) apply(wanted map[Drop]bool) error {
	path, err := exec.LookPath("nft")
	if err != nil {
		return errors.New("the program nft is missing: install it with `apt install nftables`")
	}
	if _, err := s.reaper.Output(path, []string{"nft", "-f", "-"}, ruleset(sortDrops(wanted))); err != nil {
		return fmt.Errorf("set the switches' rules: %w", err)
	}
	s.drops = wanted
	return nil
}

func (s *switches) dropped() []Drop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortDrops(s.drops)
}

func sortDrops(set map[Drop]bool) []Drop {
	drops := make([]Drop, 0, len(set))
	for d := range set {
		drops = append(drops, d)
	}
	slices.SortFunc(drops, func(a, b Drop) int {
		return strings.Compare(a.key(), b.key())
	})
	return drops
}

func (d Drop) key() string { return string(d.Network) + " " + d.From + " " + d.To }

// ruleset is the nftables text. The hook forward sees what goes from port to
// port, and never what the room itself sends or receives. A direction that is
// dropped alone lets ARP pass: otherwise the other one would die with its
// neighbour entry, half a minute later.
func ruleset(drops []Drop) string {
	var b strings.Builder
	b.WriteString("table bridge sauh\ndelete table bridge sauh\ntable bridge sauh {\n\tchain forward {\n")
	b.WriteString("\t\ttype filter hook forward priority 0; policy accept;\n")
	for _, d := range drops {
		match := ""
		if !slices.Contains(drops, Drop{Network: d.Network, From: d.To, To: d.From}) {
			match = "ether type != arp "
		}
		fmt.Fprintf(&b, "\t\tiifname %q oifname %q %sdrop\n", portName(d.From, d.Network), portName(d.To, d.Network), match)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// The rest is used by the room and by nodes, each in its own network namespace.

func setUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	return nil
}

// addBridge makes a bridge whose ports forward at once, without spanning tree.
func addBridge(name string, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	snooping := false // no querier here: snooping would forget groups
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	for file, value := range map[string]string{"stp_state": "0", "forward_delay": "0"} {
		if err := os.WriteFile(filepath.Join("/sys/class/net", name, "bridge", file), []byte(value), 0); err != nil {
			return fmt.Errorf("set up bridge %s: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set up bridge %s: %w", name, err)
	}
	return nil
}

// addAddress gives an interface an address of a /24.
func addAddress(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, address, err)
	}
	return nil
}

// setSysctls writes pairs of a path below /proc/sys and a value; what this kernel does not have is skipped.
func setSysctls(pairs [][2]string) error {
	for _, p := range pairs {
		err := os.WriteFile(filepath.Join("/proc/sys", p[0]), []byte(p[1]), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set %s: %w", p[0], err)
		}
	}
	return nil
}
