package place_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

func TestWhatIfSaysWhereGuestsWouldGoAndWhichWouldNot(t *testing.T) {
	c := place.Cluster{
		Nodes:  []place.Node{node("n1", memory(4096)), node("n2", memory(4096)), node("n3", memory(4096))},
		Guests: []place.Guest{ha(100, "n1"), ha(101, "n1"), guest(102, "n1", 512), ha(103, "n2"), ha(104, "n1", idle), ha(105, "n3", func(g *place.Guest) { g.MemoryMiB = 4000 })},
	}
	c.Rules = compile(t, c, near("near1", "vm:101", "n1", "strict 1"))
	got := map[string]string{}
	for _, pl := range place.WhatIf(c, "n1", "n1", "n9") {
		got[pl.Request.Name()] = pl.Node
		if pl.Node == "" {
			got[pl.Request.Name()] = place.Explain(pl.Verdicts)
		}
	}
	want := map[string]string{
		"vm:100": "n2",
		"vm:101": "no node can take it: n1 is fenced; n2 is not among the nodes of rule near1; n3 is not among the nodes of rule near1",
		"vm:104": "n3", // it takes no memory until it starts
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan differs (-want +got):\n%s", diff)
	}
}

func TestTheFailuresThatAClusterCanTakeAreCounted(t *testing.T) {
	four := []place.Node{node("n1", memory(4096)), node("n2", memory(4096)), node("n3", memory(4096)), node("n4", state(place.Maintenance))}
	tests := map[string]struct {
		guests []place.Guest
		rules  string
		budget int
		want   place.Tolerance
		missed string
	}{
		"no HA guest: all nodes but one": {[]place.Guest{guest(100, "n1", 1024)}, "", 0, place.Tolerance{Nodes: 2, Exact: true}, ""},
		"little memory used":             {[]place.Guest{ha(100, "n1"), ha(101, "n2")}, "", 0, place.Tolerance{Nodes: 2, Exact: true, Failed: []string{"n1", "n2", "n3"}}, ""},
		"one node's worth": {
			[]place.Guest{ha(100, "n1"), ha(101, "n1"), ha(102, "n2"), ha(103, "n2"), ha(104, "n3")},
			"", 0,
			place.Tolerance{Nodes: 1, Exact: true, Failed: []string{"n1", "n2"}},
			"vm:103",
		},
		"none: a guest is bound to one node": {[]place.Guest{ha(100, "n2")}, near("near1", "vm:100", "n2", "strict 1"), 0, place.Tolerance{Exact: true, Failed: []string{"n2"}}, "vm:100"},
		"none: all nodes are needed":         {[]place.Guest{ha(100, "n1"), ha(101, "n2"), ha(102, "n3")}, apart("apart1", "vm:100,vm:101,vm:102"), 0, place.Tolerance{Exact: true, Failed: []string{"n1"}}, "vm:100"},
		"too much work for more than one":    {[]place.Guest{ha(100, "n1"), ha(101, "n2")}, "", 5, place.Tolerance{Nodes: 1}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := place.Cluster{Nodes: four, Guests: tt.guests}
			c.Rules = compile(t, c, tt.rules)
			got := place.FailuresToTolerate(c, tt.budget)
			var missed []string
			for _, pl := range got.Unplaced {
				missed = append(missed, pl.Request.Name())
			}
			got.Unplaced = nil
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("tolerance differs (-want +got):\n%s", diff)
			}
			if tt.missed != strings.Join(missed, ",") {
				t.Errorf("missed %v, want %s", missed, tt.missed)
			}
		})
	}
	if got := (place.Tolerance{Nodes: 1}).String(); got != "the cluster can take at least 1 node failure" {
		t.Errorf("got %q", got)
	}
}

func TestAStartThatTheClusterCouldNotTakeIsNotAdmitted(t *testing.T) {
	c := place.Cluster{
		Nodes:  []place.Node{node("n1", memory(4096)), node("n2", memory(4096))},
		Guests: []place.Guest{ha(100, "n1"), ha(101, "n2"), ha(102, "n1", idle)},
	}
	big := place.Request{VMID: 102, MemoryMiB: 2560, Node: "n1"}
	tests := map[string]struct {
		request place.Request
		wanted  int
		want    string
	}{
		"it fits":                  {place.Request{VMID: 102, MemoryMiB: 2048}, 1, ""},
		"nothing is asked for":     {big, 0, ""},
		"more failures than nodes": {place.Request{VMID: 102, MemoryMiB: 100}, 2, "with vm:102 on n1 the cluster could take 1 node failure, and failures-to-tolerate asks for 2: without n1 and n2, no node would be left: lower failures-to-tolerate"},
		"it does not":              {big, 1, "with vm:102 on n1 the cluster could take 0 node failures, and failures-to-tolerate asks for 1: without n1, vm:102 would not come back (no node can take it: n1 is fenced; n2 has 2048 MiB free of 4096 MiB (2048 MiB configured, 0 MiB reserved), the guest needs 2560 MiB): stop a guest, add memory, or lower failures-to-tolerate"},
		"it finds no place":        {place.Request{VMID: 102, MemoryMiB: 4096}, 1, "vm:102 finds no place: no node can take it: n1 has 3072 MiB free of 4096 MiB (1024 MiB configured, 0 MiB reserved), the guest needs 4096 MiB; n2 has 3072 MiB free of 4096 MiB (1024 MiB configured, 0 MiB reserved), the guest needs 4096 MiB"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, place.NewPlanner(c).Admit(tt.request, "", tt.wanted)); diff != "" {
				t.Errorf("sentence differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGuestsAreAdmittedOneAfterTheOtherAndOneThatIsRefusedLeavesNoTrace(t *testing.T) {
	c := place.Cluster{
		Nodes:  []place.Node{node("n1", memory(4096)), node("n2", memory(4096))},
		Guests: []place.Guest{ha(100, "n1"), ha(101, "n1", idle), ha(102, "n2", idle), ha(103, "n2", idle)},
	}
	p := place.NewPlanner(c)
	admitted := func(id model.VMID, mib int64, on string) bool {
		return p.Admit(place.Request{VMID: id, MemoryMiB: mib}, on, 1) == ""
	}
	got := []bool{admitted(101, 2048, "n1"), admitted(102, 2048, "n2"), admitted(103, 1024, "n2")}
	if diff := cmp.Diff([]bool{true, false, true}, got); diff != "" {
		t.Errorf("admitted (-want +got):\n%s", diff)
	}
	if p.Work() == 0 {
		t.Error("it took no work")
	}
}
