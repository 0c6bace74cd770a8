package etcd

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"sauh.dev/sauh/internal/certs"
)

// room is three members with two links each, on two switches.
type room struct {
	wire    *netlink.Handle // into the namespace of the switches
	wireFD  netns.NsHandle
	ca      certs.Pair
	initial map[string][]string
	nodes   []*roomNode
}

type roomNode struct {
	*process
	cfg Config
}

func newRoom(t *testing.T) *room {
	t.Helper()
	t.Parallel() // two at a time on two cores: most of the time a room waits
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	if testing.Short() {
		t.Skip("takes ten seconds and more of real time")
	}
	ca, err := certs.NewCA("room", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &room{ca: ca, initial: map[string][]string{}}
	sw := startProcess(t, roleSwitch, "switch")
	if _, err := fmt.Fprintln(sw.in, "br1 br2"); err != nil {
		t.Fatal(err)
	}
	if err := sw.out.Decode(&struct{}{}); err != nil {
		t.Fatalf("make the switches: %v", err)
	}
	r.wireFD, r.wire = enter(t, sw)
	for i := range 3 {
		cfg := r.config(t, i)
		r.initial[cfg.Name] = PeerURLs(cfg.Addresses, 0)
		r.nodes = append(r.nodes, &roomNode{cfg: cfg})
	}
	for _, n := range r.nodes {
		n.cfg.Initial = r.initial
		r.power(t, n)
	}
	return r
}

func (r *room) config(t *testing.T, i int) Config {
	t.Helper()
	name, dir := fmt.Sprintf("n%d", i+1), t.TempDir()
	addresses := []string{fmt.Sprintf("10.10.1.%d", i+1), fmt.Sprintf("10.10.2.%d", i+1)}
	return Config{
		Name: name, DataDir: filepath.Join(dir, "etcd"), Addresses: addresses, Token: "room",
		TLS: writeCerts(t, r.ca, dir, name, addresses),
	}
}

// enter returns a handle into a process' network namespace.
func enter(t *testing.T, p *process) (netns.NsHandle, *netlink.Handle) {
	t.Helper()
	fd, err := netns.GetFromPid(p.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fd.Close() })
	h, err := netlink.NewHandleAt(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return fd, h
}

// power makes the node's process, its links and its multipath endpoints. The member is not started yet.
func (r *room) power(t *testing.T, n *roomNode) {
	t.Helper()
	n.process = startProcess(t, roleNode, n.cfg.Name)
	fd, h := enter(t, n.process)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("wire %s: %v", n.cfg.Name, err)
		}
	}
	up(t, h, "lo")
	for k, address := range n.cfg.Addresses {
		port, eth := fmt.Sprintf("s%d%s", k+1, n.cfg.Name), fmt.Sprintf("e%d", k+1)
		if old, err := r.wire.LinkByName(port); err == nil { // the kernel has not taken the dead node's away yet
			_ = r.wire.LinkDel(old)
		}
		bridge, err := r.wire.LinkByName(fmt.Sprintf("br%d", k+1))
		check(err)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = port, bridge.Attrs().Index
		check(r.wire.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: eth, PeerNamespace: netlink.NsFd(fd)}))
		up(t, r.wire, port)
		up(t, h, eth)
		link, err := h.LinkByName(eth)
		check(err)
		addr, err := netlink.ParseAddr(address + "/24")
		check(err)
		check(h.AddrAdd(link, addr))
	}
	var addrs []netip.Addr
	for _, a := range n.cfg.Addresses {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	n.must(t, nodeCommand{Multipath: addrs})
}

func up(t *testing.T, h *netlink.Handle, name string) {
	t.Helper()
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		t.Fatalf("bring %s up: %v", name, err)
	}
}

// silence takes every port out of switch k, or puts it back: no packet passes, and no card loses its carrier.
func (r *room) silence(t *testing.T, k int, silent bool) {
	t.Helper()
	bridge, err := r.wire.LinkByName(fmt.Sprintf("br%d", k))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.nodes {
		port, err := r.wire.LinkByName(fmt.Sprintf("s%d%s", k, n.cfg.Name))
		if err == nil && silent {
			err = r.wire.LinkSetNoMaster(port)
		} else if err == nil {
			err = r.wire.LinkSetMaster(port, bridge)
		}
		if err != nil {
			t.Fatalf("switch %d: %v", k, err)
		}
	}
}

// cut takes every port of switch k (1 or 2) down, or up again.
func (r *room) cut(t *testing.T, k int, down bool) {
	t.Helper()
	for _, n := range r.nodes {
		name := fmt.Sprintf("s%d%s", k, n.cfg.Name)
		link, err := r.wire.LinkByName(name)
		if err != nil {
			continue // the node is off
		}
		if down {
			err = r.wire.LinkSetDown(link)
		} else {
			err = r.wire.LinkSetUp(link)
		}
		if err != nil {
			t.Fatalf("switch %d: %s: %v", k, name, err)
		}
	}
}

// start starts all members at once, and waits until each has written: from then on all know the term.
func (r *room) start(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range r.nodes {
		wg.Go(func() {
			if _, err := n.do(nodeCommand{Start: &n.cfg}); err != nil {
				t.Errorf("start %s: %v", n.cfg.Name, err)
			}
		})
	}
	wg.Wait()
	for _, n := range r.nodes {
		n.writes(t, 10*time.Second)
	}
}

// writes waits until the member commits a write.
func (n *roomNode) writes(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, "a write by "+n.cfg.Name, limit, func() bool {
		all := n.must(t, nodeCommand{Puts: 10 * time.Millisecond}).Puts
		return all[len(all)-1].Error == ""
	})
}

// quorate waits until all running members know the same leader, and returns it with its term.
func (r *room) quorate(t *testing.T) (string, uint64) {
	t.Helper()
	var leader string
	var term uint64
	eventually(t, "a leader that all members know", 20*time.Second, func() bool {
		seen := map[string]uint64{}
		for _, n := range r.nodes {
			if n.cmd.ProcessState == nil {
				answer := n.must(t, nodeCommand{})
				seen[answer.Leader] = max(seen[answer.Leader], answer.Term)
			}
		}
		leader = slices.Collect(maps.Keys(seen))[0]
		term = seen[leader]
		return len(seen) == 1 && leader != ""
	})
	return leader, term
}

// puts writes on all the nodes given while fault happens a second after the beginning.
func puts(t *testing.T, nodes []*roomNode, d time.Duration, fault func()) map[string][]put {
	t.Helper()
	var mu sync.Mutex
	all := map[string][]put{}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			answer, err := n.do(nodeCommand{Puts: d})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				all[n.cfg.Name] = answer.Puts
			}
		})
	}
	wait(time.Second)
	fault()
	wg.Wait()
	return all
}

// wait lets real time pass in the machine room.
func wait(d time.Duration) { <-time.After(d) }

// worst sums up what the writers saw.
func worst(all map[string][]put) (longest time.Duration, failed, count int) {
	for _, list := range all {
		for _, p := range list {
			longest, count = max(longest, p.Took), count+1
			if p.Error != "" {
				failed++
			}
		}
	}
	return longest, failed, count
}

// report logs what the writers saw of the writes that began at the times of part.
func (r *room) report(t *testing.T, what string, all map[string][]put, part func(start time.Time) bool) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list := slices.DeleteFunc(slices.Clone(all[name]), func(p put) bool { return !part(time.Unix(0, p.Start)) })
		longest, failed, count := worst(map[string][]put{name: list})
		t.Logf("%s: %s wrote %d times, %d failed, longest %v", what, name, count, failed, longest.Round(time.Millisecond))
	}
}

// A cut switch costs at most a second of writes, and no election: for the first switch, and after it came back for the second.
func TestACutSwitchCostsAtMostASecondOfWritesAndNoElection(t *testing.T) {
	r := newRoom(t)
	r.start(t)
	r.cutBoth(t, r.cut, 0)
}

// A switch that swallows everything with its lights on is noticed by time-outs alone, several of which a write may need:
// some may fail within their second, but nobody is elected.
func TestASilentSwitchCostsAFewWritesAndNoElection(t *testing.T) {
	r := newRoom(t)
	r.start(t)
	r.cutBoth(t, r.silence, 6)
}

// faultTime is how long a switch stays broken: longer than PeerSilence and an election take.
const faultTime = 3 * time.Second

// cutBoth breaks one switch after the other while all nodes write, and checks what it cost.
func (r *room) cutBoth(t *testing.T, fault func(*testing.T, int, bool), mayFail int) {
	t.Helper()
	for k := 1; k <= 2; k++ {
		leader, term := r.quorate(t)
		var back time.Time
		all := puts(t, r.nodes, faultTime+4*time.Second, func() {
			fault(t, k, true)
			wait(faultTime)
			back = time.Now()
			fault(t, k, false)
		})
		leaderAfter, termAfter := r.quorate(t)
		what := fmt.Sprintf("switch %d cut", k)
		r.report(t, what, all, func(start time.Time) bool { return start.Before(back) })
		r.report(t, fmt.Sprintf("switch %d back", k), all, back.Before)
		longest, failed, count := worst(all)
		if longest > time.Second || failed > mayFail || count < 300 {
			t.Errorf("%s: longest put %v, %d of %d failed; want at most 1s and %d", what, longest, failed, count, mayFail)
		}
		if leader != leaderAfter || term != termAfter {
			t.Errorf("%s: leader %s of term %d became %s of term %d, want no election", what, leader, term, leaderAfter, termAfter)
		}
	}
	t.Logf("n1's multipath counters: %v", r.nodes[0].must(t, nodeCommand{Counters: true}).Netstat)
}

func TestAMemberThatRestartsWhileOneNetworkIsCutTakesPartAgain(t *testing.T) {
	r := newRoom(t)
	r.start(t)
	for k := 1; k <= 2; k++ {
		leader, _ := r.quorate(t)
		i := slices.IndexFunc(r.nodes, func(n *roomNode) bool { return n.cfg.Name != leader })
		n := r.nodes[i]
		n.kill()
		r.cut(t, k, true)
		r.power(t, n)
		r.cut(t, k, true) // the new port too
		start := time.Now()
		n.must(t, nodeCommand{Start: &n.cfg})
		t.Logf("network %d cut: %s started in %v", k, n.cfg.Name, time.Since(start).Round(time.Millisecond))
		n.writes(t, 15*time.Second)
		t.Logf("network %d cut: %s wrote %v after its start", k, n.cfg.Name, time.Since(start).Round(time.Millisecond))
		r.cut(t, k, false)
		r.quorate(t)
	}
}

func TestWritesGoOnSoonAfterTheLeaderDied(t *testing.T) {
	r := newRoom(t)
	r.start(t)
	leader, term := r.quorate(t)
	var rest []*roomNode
	var dead *roomNode
	for _, n := range r.nodes {
		if n.cfg.Name == leader {
			dead = n
		} else {
			rest = append(rest, n)
		}
	}
	var killed time.Time
	all := puts(t, rest, 5500*time.Millisecond, func() {
		killed = time.Now()
		dead.kill()
	})
	for _, name := range slices.Sorted(maps.Keys(all)) {
		first := time.Duration(0)
		longest, failed := time.Duration(0), 0
		for _, p := range all[name] {
			end := time.Unix(0, p.Start).Add(p.Took)
			longest = max(longest, p.Took)
			if p.Error != "" {
				failed++
			} else if first == 0 && time.Unix(0, p.Start).After(killed) {
				first = end.Sub(killed)
			}
		}
		t.Logf("leader killed: %s committed %v later, %d writes failed before, none waited longer than %v",
			name, first.Round(time.Millisecond), failed, longest.Round(time.Millisecond))
		if first == 0 || first > 4*time.Second || longest > 1200*time.Millisecond {
			t.Errorf("%s: first write after %v, longest %v; want at most 4s and 1.2s", name, first, longest)
		}
	}
	_, after := r.quorate(t)
	t.Logf("leader killed: term %d became %d", term, after)
}

func TestHandingOverTheLeadershipFailsNoWrite(t *testing.T) {
	r := newRoom(t)
	r.start(t)
	leader, _ := r.quorate(t)
	var rest []*roomNode
	var leading *roomNode
	for _, n := range r.nodes {
		if n.cfg.Name == leader {
			leading = n
		} else {
			rest = append(rest, n)
		}
	}
	all := puts(t, rest, 3*time.Second, func() { leading.must(t, nodeCommand{Transfer: true}) })
	r.report(t, "leadership handed over", all, func(time.Time) bool { return true })
	if longest, failed, _ := worst(all); longest > time.Second || failed > 0 {
		t.Errorf("longest put %v, %d failed; want at most 1s and none", longest, failed)
	}
	if now, _ := r.quorate(t); now == leader {
		t.Errorf("the leader is still %s", now)
	}
}
