package place_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

// node is online, has 16 GiB and the storage nas.
func node(name string, change ...func(*place.Node)) place.Node {
	n := place.Node{Name: name, State: place.Online, MemoryMiB: 16384, Storages: []string{"nas"}}
	for _, c := range change {
		c(&n)
	}
	return n
}

func memory(mib int64) func(*place.Node)        { return func(n *place.Node) { n.MemoryMiB = mib } }
func state(s place.NodeState) func(*place.Node) { return func(n *place.Node) { n.State = s } }
func guest(id model.VMID, on string, mib int64) place.Guest {
	return place.Guest{VMID: id, Node: on, MemoryMiB: mib}
}

func TestTheNodeWithTheFewestGuestsIsChosen(t *testing.T) {
	tests := []struct {
		name    string
		cluster place.Cluster
		want    string
	}{
		{"empty nodes: the first by name", place.Cluster{Nodes: []place.Node{node("n2"), node("n1")}}, "n1"},
		{"fewer guests", place.Cluster{Nodes: []place.Node{node("n1"), node("n2")}, Guests: []place.Guest{guest(100, "n1", 512)}}, "n2"},
		{"how big they are makes no difference", place.Cluster{Nodes: []place.Node{node("n1"), node("n2")}, Guests: []place.Guest{
			guest(100, "n1", 512), guest(101, "n1", 512), guest(102, "n2", 8192),
		}}, "n2"},
		{"a guest that does not run does not count", place.Cluster{Nodes: []place.Node{node("n1"), node("n2")}, Guests: []place.Guest{
			{VMID: 100, Node: "n1", MemoryMiB: 16384, Idle: true}, guest(102, "n2", 512),
		}}, "n1"},
		{"a guest on its way counts on both nodes", place.Cluster{Nodes: []place.Node{node("n1"), node("n2"), node("n3")}, Guests: []place.Guest{
			{VMID: 100, Node: "n1", Target: "n2", MemoryMiB: 512},
		}}, "n3"},
		{"the guest does not count against itself", place.Cluster{Nodes: []place.Node{node("n1"), node("n2")}, Guests: []place.Guest{
			guest(900, "n1", 8192), guest(101, "n2", 512),
		}}, "n1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, verdicts := place.Choose(place.Request{VMID: 900, MemoryMiB: 2048, Storages: []string{"nas"}}, tt.cluster)
			if got != tt.want {
				t.Errorf("got %q, want %q: %s", got, tt.want, place.Explain(verdicts))
			}
		})
	}
}

func TestEveryNodeThatIsRefusedGetsItsReason(t *testing.T) {
	c := place.Cluster{
		ReserveMiB: 1024,
		Nodes: []place.Node{
			node("full"), node("off", state(place.Offline)), node("cut", state(place.Fenced)), node("silent", state(place.Suspect)),
			node("bare", func(n *place.Node) { n.Storages = nil }), node("new", memory(0)), node("kept"), node("good"), node("better"),
		},
		Guests: []place.Guest{guest(100, "full", 12288), guest(101, "full", 2048), guest(102, "good", 4096)},
	}
	r := place.Request{VMID: 900, MemoryMiB: 2048, Storages: []string{"nas"}, Exclude: map[string]string{"kept": "it holds the copy"}}
	got, verdicts := place.Choose(r, c)
	want := []place.Verdict{
		{Node: "better", OK: true, Chosen: true, LoadPercent: 12.5, Reason: "better has 0 other guests and would have 12 % of its memory configured"},
		{Node: "good", OK: true, LoadPercent: 37.5, Guests: 1, Reason: "good has 1 other guest and would have 38 % of its memory configured"},
		{Node: "bare", Reason: "bare has no storage nas"},
		{Node: "cut", Reason: "cut is fenced"},
		{Node: "full", Reason: "full has 1024 MiB free of 16384 MiB (14336 MiB configured, 1024 MiB reserved), the guest needs 2048 MiB"},
		{Node: "kept", Reason: "kept is excluded: it holds the copy"},
		{Node: "new", Reason: "new has not told how much memory it has"},
		{Node: "off", Reason: "off is offline"},
		{Node: "silent", Reason: "silent is silent"},
	}
	if got != "better" {
		t.Errorf("chosen %q, want better", got)
	}
	if diff := cmp.Diff(want, verdicts); diff != "" {
		t.Errorf("verdicts differ (-want +got):\n%s", diff)
	}
}

func TestTheLastMiBIsGivenAwayAndNotOneMore(t *testing.T) {
	c := place.Cluster{Nodes: []place.Node{node("n1", memory(4096))}, Guests: []place.Guest{guest(100, "n1", 1024)}, ReserveMiB: 1024}
	for mib, want := range map[int64]string{2048: "n1", 2049: ""} {
		if got, _ := place.Choose(place.Request{VMID: 900, MemoryMiB: mib}, c); got != want {
			t.Errorf("%d MiB: got %q, want %q", mib, got, want)
		}
	}
}

func TestAPlanPlacesTheBiggestFirstIfNotAllFindAPlaceByName(t *testing.T) {
	c := place.Cluster{
		Nodes:  []place.Node{node("n1", memory(4096)), node("n2", memory(4096)), node("dead", state(place.Fenced))},
		Guests: []place.Guest{guest(100, "dead", 1024), guest(101, "dead", 3072), guest(102, "dead", 2048), guest(103, "dead", 2048)},
	}
	plan := place.Plan([]place.Request{{VMID: 100, MemoryMiB: 1024}, {VMID: 103, MemoryMiB: 2048}, {VMID: 101, MemoryMiB: 3072}, {VMID: 102, MemoryMiB: 2048}}, c)
	type row struct {
		VMID model.VMID
		Node string
	}
	var got []row
	for _, p := range plan {
		got = append(got, row{p.Request.VMID, p.Node})
	}
	want := []row{{101, "n1"}, {102, "n2"}, {103, "n2"}, {100, "n1"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan differs (-want +got):\n%s", diff)
	}
	if len(c.Guests) != 4 || c.Guests[0].Node != "dead" {
		t.Error("Plan changed the cluster it was given")
	}
}

func TestAPlanGoesOnAfterAGuestThatFindsNoPlace(t *testing.T) {
	c := place.Cluster{Nodes: []place.Node{node("n1", memory(2048))}}
	plan := place.Plan([]place.Request{{VMID: 100, MemoryMiB: 4096}, {VMID: 101, MemoryMiB: 1024}}, c)
	if plan[0].Node != "" || plan[1].Node != "n1" {
		t.Errorf("got %q and %q, want none and n1", plan[0].Node, plan[1].Node)
	}
	if got, want := place.Explain(plan[0].Verdicts), "no node can take it: n1 has 2048 MiB free of 2048 MiB (0 MiB configured, 0 MiB reserved), the guest needs 4096 MiB"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAChoiceIsExplained(t *testing.T) {
	_, verdicts := place.Choose(place.Request{VMID: 900, MemoryMiB: 1024}, place.Cluster{Nodes: []place.Node{node("n1")}})
	if got, want := place.Explain(verdicts), "n1 has 0 other guests and would have 6 % of its memory configured, the best of those possible"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	stay, why := place.NewPlanner(place.Cluster{Nodes: []place.Node{node("n1"), node("n2")}}).Pick(place.Request{VMID: 900, MemoryMiB: 1024, Node: "n2", Prefer: place.Stay})
	if stay != "n2" || why != "vm:900 is on n2 already" {
		t.Errorf("got %q: %q", stay, why)
	}
	var many []place.Node
	for i := range 12 {
		many = append(many, node(string(rune('a'+i)), state(place.Fenced)))
	}
	_, verdicts = place.Choose(place.Request{VMID: 900}, place.Cluster{Nodes: many})
	if got := place.Explain(verdicts); !strings.HasSuffix(got, "h is fenced; and 4 more nodes") {
		t.Errorf("got %q", got)
	}
	if got := place.Explain(nil); got != "the cluster has no nodes" {
		t.Errorf("got %q", got)
	}
}
