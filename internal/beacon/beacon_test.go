package beacon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/beacon"
	core "sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// source is what a node in a test says of itself.
type source struct {
	mu      sync.Mutex
	running []beacon.Guest
	members []beacon.Member
	keys    []beacon.Key
}

func (s *source) Running(context.Context) []beacon.Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *source) Members() []beacon.Member { return s.members }
func (s *source) Epoch() uint64            { return 3 }

func (s *source) Keys() []beacon.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

func (s *source) run(ids ...model.VMID) {
	var guests []beacon.Guest
	for _, id := range ids {
		guests = append(guests, beacon.Guest{VMID: id, Epoch: 3, Revision: 7, Since: sys.BootTime()})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = guests
}

func (s *source) setKeys(ids ...uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = nil
	for _, id := range ids {
		s.keys = append(s.keys, key(id))
	}
}

func key(id uint32) beacon.Key {
	return beacon.Key{ID: id, Secret: []byte(fmt.Sprintf("%032d", id))}
}

// node is a beacon on loopback addresses of its own.
type node struct {
	*beacon.Beacon
	*source
	cfg    beacon.Config
	cancel context.CancelFunc

	mu     sync.Mutex
	alarms []beacon.Alarm
}

func (n *node) told() []beacon.Alarm {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alarms
}

func (n *node) stop() {
	n.cancel()
	n.Wait()
}

func (n *node) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	b, err := beacon.Start(ctx, n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Beacon, n.cancel = b, cancel
	t.Cleanup(n.stop)
}

// freePort is one that no UDP socket of this machine has now.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

func member(i int) beacon.Member {
	return beacon.Member{Name: fmt.Sprintf("n%d", i), Addrs: [2]netip.Addr{
		netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}), netip.AddrFrom4([4]byte{127, 0, 2, byte(i)}),
	}}
}

// cluster makes nodes that are not yet started.
func cluster(t *testing.T, count int) []*node {
	t.Helper()
	port := freePort(t)
	var members []beacon.Member
	var nodes []*node
	for i := range count {
		members = append(members, member(i+1))
	}
	for _, m := range members {
		n := &node{source: &source{members: members, keys: []beacon.Key{key(1)}}}
		n.cfg = beacon.Config{
			Node: m.Name, Boot: "boot of " + m.Name, Addrs: m.Addrs, Port: port, StateDir: filepath.Join(t.TempDir(), "state"),
			Source: n.source, Log: slog.New(slog.DiscardHandler), OnAlarm: func(a beacon.Alarm) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.alarms = append(n.alarms, a)
			},
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// until waits for something, 20 s at most.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("after 20 s still not: %s", what)
		case <-tick.C:
		}
	}
}

func hears(a *node, name string) func() bool {
	return func() bool {
		s, ok := a.Heard(name)
		return ok && s.Ever && s.Networks[0] < time.Second && s.Networks[1] < time.Second
	}
}

func TestADoubleRunIsToldKeptAndAcknowledged(t *testing.T) {
	nodes := cluster(t, 3)
	for _, n := range nodes {
		n.start(t)
	}
	until(t, "n1 hears n2 on both networks", hears(nodes[0], "n2"))
	until(t, "n3 hears n2 on both networks", hears(nodes[2], "n2"))
	nodes[0].run(100, 101)
	nodes[1].run(100, 102)
	for _, n := range nodes { // who takes part, and who only hears of it
		until(t, n.cfg.Node+" tells of the double run", func() bool { return len(n.told()) == 1 })
	}
	n3 := nodes[2]
	a := n3.told()[0]
	if a.VMID != 100 || a.Runs[0].Node != "n1" || a.Runs[1].Node != "n2" || a.Runs[1].Epoch != 3 || a.Runs[1].Revision != 7 || a.Observer != "n3" || a.At.IsZero() {
		t.Errorf("alarm: %+v", a)
	}
	nodes[1].run(102)

	n3.stop()
	n3.alarms = nil
	n3.start(t)
	if told := n3.told(); len(told) != 1 || told[0].ID != a.ID || !told[0].At.Equal(a.At) {
		t.Fatalf("told after a restart: %+v", told)
	}
	until(t, "n3 hears n1 after its restart", hears(n3, "n1"))
	until(t, "n1 hears n3 after its restart", hears(nodes[0], "n3"))
	if err := n3.Acknowledge("nothing"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("acknowledge what is not there: %v", err)
	}
	if err := n3.Acknowledge(a.ID); err != nil {
		t.Fatal(err)
	}
	n3.stop()
	n3.alarms = nil
	n3.start(t)
	if told := n3.told(); len(told) != 0 || len(n3.Alarms()) != 0 {
		t.Errorf("told after the acknowledgement and a restart: %+v", told)
	}
}

func TestWhatWasFoundIsToldAndKept(t *testing.T) {
	n := cluster(t, 2)[0]
	n.start(t)
	n.Found(core.Found{VMID: 100, Owner: "n2", Epoch: 3, Since: sys.BootTime()})
	told := n.told()
	if len(told) != 1 || !told[0].Found || told[0].At.IsZero() {
		t.Fatalf("told %+v", told)
	}
	n.stop()
	n.alarms = nil
	n.start(t)
	if again := n.told(); len(again) != 1 || again[0].ID != told[0].ID || !again[0].Found {
		t.Errorf("after a restart %+v", again)
	}
}

func TestAnAlarmThatCannotBeWrittenStays(t *testing.T) {
	nodes := cluster(t, 2)
	n1 := nodes[0]
	if err := os.WriteFile(n1.cfg.StateDir, []byte("no directory"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The file cannot even be looked for.
	if _, err := beacon.Start(t.Context(), n1.cfg); err == nil || !strings.Contains(err.Error(), "read alarms") {
		t.Fatalf("started with an unreadable state: %v", err)
	}
	if err := os.Remove(n1.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.start(t)
	}
	if err := os.WriteFile(n1.cfg.StateDir, []byte("no directory"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "n1 hears n2", hears(n1, "n2"))
	for _, n := range nodes {
		n.run(100)
	}
	until(t, "n1 tells of the double run though it cannot write", func() bool { return len(n1.told()) == 1 })
	nodes[1].run()
	if err := n1.Acknowledge(n1.told()[0].ID); err == nil || len(n1.Alarms()) != 1 {
		t.Errorf("acknowledged with %v; %d alarms stay", err, len(n1.Alarms()))
	}
	if err := os.Remove(n1.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	until(t, "the alarm is written when that is possible again", func() bool {
		data, err := os.ReadFile(filepath.Join(n1.cfg.StateDir, "double-runs.json"))
		var alarms []beacon.Alarm
		return err == nil && json.Unmarshal(data, &alarms) == nil && len(alarms) == 1
	})
}

func TestKeysAreRotatedWithoutASilence(t *testing.T) {
	nodes := cluster(t, 2)
	for _, n := range nodes {
		n.start(t)
	}
	until(t, "n1 hears n2", hears(nodes[0], "n2"))
	for _, ids := range [][]uint32{{1, 2}, {2, 1}, {2}} { // accepted, put first, the old one dropped
		for _, n := range nodes {
			n.setKeys(ids...)
			seen := n.Counters().Accepted
			until(t, "datagrams after the change", func() bool { return n.Counters().Accepted > seen+2 })
		}
	}
	for _, n := range nodes {
		if c := n.Counters(); c.UnknownKey+c.Forged > 0 {
			t.Errorf("%s: %+v", n.cfg.Node, c)
		}
	}
	nodes[1].setKeys(3)
	until(t, "n1 counts datagrams of a key that it has not", func() bool { return nodes[0].Counters().UnknownKey > 0 })
	nodes[1].setKeys()
	until(t, "n2 says that it has no key", func() bool { return strings.Contains(nodes[1].Networks()[0].Err, "no key") })
}

func TestGarbageIsCountedAndHarmsNothing(t *testing.T) {
	nodes := cluster(t, 2)
	for _, n := range nodes {
		n.start(t)
	}
	until(t, "n1 hears n2", hears(nodes[0], "n2"))
	conn, err := net.Dial("udp", netip.AddrPortFrom(nodes[0].cfg.Addrs[0], nodes[0].cfg.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	forged := core.Seal(core.Message{From: "n2", To: "n1", Boot: "x"}, beacon.Key{ID: 1, Secret: []byte("wrong")})
	for _, data := range [][]byte{nil, []byte("hello"), make([]byte, 9000), forged} {
		if _, err := conn.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "n1 counts them", func() bool {
		c := nodes[0].Counters()
		return c.Malformed == 3 && c.Forged == 1
	})
	until(t, "n1 hears n2", hears(nodes[0], "n2"))
}

func TestAPortThatIsTakenIsRefusedByName(t *testing.T) {
	n := cluster(t, 1)[0]
	at := netip.AddrPortFrom(n.cfg.Addrs[1], n.cfg.Port).String()
	taken, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := beacon.Start(t.Context(), n.cfg); !errors.Is(err, model.ErrBusy) || !strings.Contains(err.Error(), at) {
		t.Errorf("error %v, want that %s is taken", err, at)
	}
	// Nothing is left of the socket that could be opened.
	free, err := net.ListenPacket("udp", netip.AddrPortFrom(n.cfg.Addrs[0], n.cfg.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
}

func TestWrongConfigurationsAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*beacon.Config){
		"node":      func(c *beacon.Config) { c.Node = "N 1" },
		"boot":      func(c *beacon.Config) { c.Boot = "" },
		"mgmt":      func(c *beacon.Config) { c.Addrs[0] = netip.Addr{} },
		"state-dir": func(c *beacon.Config) { c.StateDir = "" },
		"source":    func(c *beacon.Config) { c.Source = nil },
	} {
		cfg := cluster(t, 1)[0].cfg
		spoil(&cfg)
		if _, err := beacon.Start(t.Context(), cfg); !errors.Is(err, model.ErrInvalid) || !strings.Contains(err.Error(), name+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestANodeWithOneNetworkBeaconsOnIt(t *testing.T) {
	nodes := cluster(t, 2)
	for _, n := range nodes {
		n.cfg.Addrs[1] = n.cfg.Addrs[0]
		n.members = []beacon.Member{member(1), member(2)}
		n.members[0].Addrs[1], n.members[1].Addrs[1] = n.members[0].Addrs[0], netip.Addr{}
		n.start(t)
	}
	until(t, "n1 hears n2", func() bool {
		s, _ := nodes[0].Heard("n2")
		return s.Ever && s.Any < time.Second
	})
	if s := nodes[0].Networks()[1]; s.Addr.IsValid() || s.Listening || s.Err != "" {
		t.Errorf("the second network: %+v", s)
	}
	if c := nodes[0].Counters(); c.Foreign+c.Stale > 0 {
		t.Errorf("counters: %+v", c)
	}
}
