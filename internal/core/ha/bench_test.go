package ha_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// big is a cluster of 256 nodes in racks of 40 with 20,000 guests that run.
func big(dead int) ha.View {
	v := ha.View{
		Revision: 1000, Quorate: true, LeaseValid: true, Manager: model.Manager{Node: "n255", Term: 1}, ManagerRevision: 5,
		Resources: map[model.VMID]pveconf.HAState{}, Protected: map[model.VMID]ha.Protected{}, Intents: map[model.VMID]ha.Intent{},
		Statuses: map[model.VMID]ha.StatusRecord{}, Config: map[model.VMID]ha.Resource{}, Unix: 1_000_000,
	}
	for i := range 256 {
		m := member(fmt.Sprintf("n%d", i), int64(i+1), int64(i+10))
		m.MemoryMiB, m.CPUs, m.Rack = 512<<10, 128, fmt.Sprintf("r%d", i/40)
		if i < dead {
			m.Live.Fenced, m.MayTake, m.Silence = true, true, time.Minute
		}
		v.Members = append(v.Members, m)
	}
	for i := range 20_000 {
		id, node := model.VMID(100+i), fmt.Sprintf("n%d", i%256)
		v.Guests = append(v.Guests, ha.Guest{VMID: id, Node: node, Revision: 7, MemoryMiB: 2048 + int64(i%7)*1024, CPUs: 2, Storages: []string{"nas"}})
		v.Resources[id] = pveconf.HAStarted
		v.Config[id] = ha.Resource{MaxRestart: 1, MaxRelocate: 1}
		v.Protected[id] = ha.Protected{Protected: model.Protected{Node: node}, Revision: 8}
		v.Statuses[id] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarted, Node: node}, Revision: 9}
	}
	return v
}

// look is the time of one look of a manager at v, and how many guests it moves.
func look(v ha.View) (time.Duration, int) {
	s := ha.New("n255", ha.DefaultParams())
	began := time.Now()
	_, actions := s.Step(0, v)
	took := time.Since(began)
	moves := 0
	for _, a := range actions {
		if _, ok := a.(ha.Move); ok {
			moves++
		}
	}
	return took, moves
}

// best of three, because the machine is shared.
func best(v ha.View) (time.Duration, int) {
	took, moves := look(v)
	for range 2 {
		t, _ := look(v)
		took = min(took, t)
	}
	return took, moves
}

func TestALookAtABigClusterIsQuick(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is measured otherwise")
	}
	const most = 500 * time.Millisecond
	took, moves := best(big(0))
	t.Logf("256 nodes and 20,000 guests: %s", took)
	if took > 3*most || moves != 0 {
		t.Errorf("a look took %s and moved %d guests, it should take at most %s and move none", took, moves, most)
	}
	v := big(0)
	v.Members[3].Request.Maintenance = true // every guest is evaluated
	took, _ = best(v)
	t.Logf("the same with a node in maintenance: %s", took)
	if took > 3*most {
		t.Errorf("a look took %s, it should take at most %s", took, most)
	}
}

func TestAPictureOfABigClusterIsQuick(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is measured otherwise")
	}
	p := ha.Look("n255", ha.DefaultParams(), big(0))
	began := time.Now()
	c := p.Cluster()
	const most = 300 * time.Millisecond
	if took := time.Since(began); took > 3*most || len(c.Guests) != 20_000 {
		t.Errorf("%d guests took %s, it should take at most %s", len(c.Guests), took, most)
	}
}

func TestALookWithRulesAndBalanceIsQuick(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is measured otherwise")
	}
	const most = 500 * time.Millisecond
	v := big(0)
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "resource-affinity: apart-%d\n\tresources vm:%d,vm:%d\n\taffinity negative\n\n", i, 100+2*i, 101+2*i)
	}
	parsed, err := pveconf.ParseHARules([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	var nodes []rules.Node
	for _, m := range v.Members {
		nodes = append(nodes, rules.Node{Name: m.Name, Rack: m.Rack})
	}
	v.Rules = rules.Compile(parsed, nodes)
	v.Policy.Placing, v.Policy.Rebalance, v.Policy.Balance = place.Static, true, place.DefaultBalanceParams()
	took, _ := best(v)
	t.Logf("256 nodes and 20,000 guests with 1000 rules and automatic rebalancing: %s", took)
	if took > 3*most {
		t.Errorf("a look took %s, it should take at most %s", took, most)
	}
}

func TestTheLossOfARackIsPlannedQuickly(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is measured otherwise")
	}
	const most = time.Second
	took, moves := best(big(40))
	t.Logf("40 nodes die: %s for %d moves", took, moves)
	if took > 3*most || moves != 32*79+8*78 {
		t.Errorf("the plan took %s for %d moves, it should take at most %s for 3152", took, moves, most)
	}
}

func BenchmarkLook(b *testing.B) {
	v := big(0)
	for b.Loop() {
		look(v)
	}
}

func BenchmarkRackDies(b *testing.B) {
	v := big(40)
	for b.Loop() {
		look(v)
	}
}
