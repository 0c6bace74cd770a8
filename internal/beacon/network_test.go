package beacon_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/beacon"
)

const childVariable = "SAUH_BEACON_TEST_NODE"

// TestMain is also the node in a network namespace of its own that TestACutNetworkShows starts.
func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		if err := child(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// report is what a child says of itself.
type report struct {
	Heard    beacon.Silence
	Networks [2]beacon.NetworkStatus
}

// child beacons until its input ends. Each line of input makes it report.
func child(name string) error {
	in := bufio.NewScanner(os.Stdin)
	in.Scan() // the cables are there
	cfg := beacon.Config{
		Node: name, Boot: "boot of " + name, Log: slog.New(slog.DiscardHandler), StateDir: os.Args[len(os.Args)-1],
		Source: &source{members: []beacon.Member{wired(1), wired(2)}, keys: []beacon.Key{key(1)}},
		Addrs:  wired(int(name[1] - '0')).Addrs,
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b, err := beacon.Start(ctx, cfg)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	other := map[string]string{"n1": "n2", "n2": "n1"}[name]
	for in.Scan() {
		s, _ := b.Heard(other)
		if err := out.Encode(report{Heard: s, Networks: b.Networks()}); err != nil {
			return err
		}
	}
	cancel()
	b.Wait()
	return nil
}

func wired(i int) beacon.Member {
	return beacon.Member{Name: fmt.Sprintf("n%d", i), Addrs: [2]netip.Addr{
		netip.AddrFrom4([4]byte{10, 9, 1, byte(i)}), netip.AddrFrom4([4]byte{10, 9, 2, byte(i)}),
	}}
}

// process is a child and its network namespace.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	ns  *netlink.Handle
}

func startChild(t *testing.T, name string) *process {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], t.TempDir())
	cmd.Env = append(os.Environ(), childVariable+"="+name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	p := &process{cmd: cmd, in: in, out: json.NewDecoder(out)}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	ns, err := netns.GetFromPid(cmd.Process.Pid)
	check(t, err)
	defer ns.Close()
	p.ns, err = netlink.NewHandleAt(ns)
	check(t, err)
	t.Cleanup(p.ns.Close)
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask has the child report.
func (p *process) ask(t *testing.T) report {
	t.Helper()
	var r report
	_, err := io.WriteString(p.in, "report\n")
	check(t, err)
	check(t, p.out.Decode(&r))
	return r
}

// cable lays one between two children and gives both ends an address.
func cable(t *testing.T, dev string, network int, a, b *process) {
	t.Helper()
	far := "x" + dev
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: far, PeerNamespace: netlink.NsPid(b.cmd.Process.Pid)}
	check(t, a.ns.LinkAdd(veth))
	for i, end := range []struct {
		p    *process
		name string
	}{{a, dev}, {b, far}} {
		link, err := end.p.ns.LinkByName(end.name)
		check(t, err)
		check(t, end.p.ns.LinkSetUp(link))
		addr := &netlink.Addr{IPNet: netlink.NewIPNet(wired(i + 1).Addrs[network].AsSlice())}
		addr.Mask = []byte{255, 255, 255, 0}
		check(t, end.p.ns.AddrAdd(link, addr))
	}
}

func TestACutNetworkShowsAndComesBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n1, n2 := startChild(t, "n1"), startChild(t, "n2")
	cable(t, "mgmt", 0, n1, n2)
	cable(t, "ring", 1, n1, n2)
	for _, p := range []*process{n1, n2} {
		_, err := io.WriteString(p.in, "start\n")
		check(t, err)
	}
	fresh := func(network int) func() bool {
		return func() bool {
			r := n1.ask(t)
			return r.Heard.Ever && r.Heard.Networks[network] < time.Second
		}
	}
	until(t, "n1 hears n2 on management", fresh(0))
	until(t, "n1 hears n2 on cluster", fresh(1))

	ring, err := n2.ns.LinkByName("xring")
	check(t, err)
	check(t, n2.ns.LinkSetDown(ring))
	until(t, "n1 shows that the cluster network is silent", func() bool {
		r := n1.ask(t)
		return r.Heard.Networks[1] > 2*time.Second && r.Heard.Any < time.Second && r.Heard.Networks[0] < time.Second
	})
	until(t, "n2 says that it cannot send", func() bool { return n2.ask(t).Networks[1].Err != "" })
	check(t, n2.ns.LinkSetUp(ring))
	until(t, "n1 hears n2 on cluster again", fresh(1))

	// The whole interface goes, and with it the address; another one comes.
	check(t, n2.ns.LinkDel(ring))
	until(t, "both say that their address is gone", func() bool {
		a, b := n1.ask(t).Networks[1], n2.ask(t).Networks[1]
		return !a.Listening && !b.Listening && strings.Contains(a.Err, "no interface of this node has the address 10.9.2.1")
	})
	cable(t, "ring2", 1, n1, n2)
	until(t, "n1 hears n2 on the new interface", func() bool {
		s := n1.ask(t).Networks[1]
		return s.Listening && s.Err == "" && fresh(1)()
	})
}

func TestADatagramThatTakesTheOtherNetworksInterfaceIsNotHeard(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n1, n2 := startChild(t, "n1"), startChild(t, "n2")
	cable(t, "mgmt", 0, n1, n2)
	cable(t, "ring", 1, n1, n2)
	// The cluster's addresses are routed over the management network, as a clever router would after a cut.
	for i, p := range []*process{n1, n2} {
		link, err := p.ns.LinkByName([]string{"mgmt", "xmgmt"}[i])
		check(t, err)
		dst := netlink.NewIPNet(wired(2 - i).Addrs[1].AsSlice())
		check(t, p.ns.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: unix.RT_SCOPE_LINK}))
		ring, err := p.ns.LinkByName([]string{"ring", "xring"}[i])
		check(t, err)
		check(t, p.ns.LinkSetDown(ring))
		_, err = io.WriteString(p.in, "start\n")
		check(t, err)
	}
	until(t, "n1 hears n2 on management", func() bool {
		r := n1.ask(t)
		return r.Heard.Ever && r.Heard.Networks[0] < time.Second
	})
	until(t, "four seconds pass", func() bool { return n1.ask(t).Heard.Networks[1] > 4*time.Second })
}
