package ha_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
)

func (s *stage) picture() ha.Picture {
	return ha.Look("n1", ha.DefaultParams(), s.view(s.actor("n1")))
}

// What a person is told beforehand is what the manager does then.
func TestAPictureRefusesWhatTheManagerWouldDrop(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*stage)
		target  string
		want    string
	}{
		"where it is":   {func(*stage) {}, "n1", "it is on n1 already"},
		"no member":     {func(*stage) {}, "n9", "n9 is no member of the cluster"},
		"silent":        {func(s *stage) { s.die("n2"); s.run(4 * second) }, "n2", "n2 is not online"},
		"maintenance":   {func(s *stage) { s.store.set(model.HARequestPrefix+"n2", ha.NodeRequest{Maintenance: true}) }, "n2", "n2 is in maintenance"},
		"disarmed":      {func(s *stage) { s.store.set(model.HAModeKey, ha.Mode{Disarm: ha.DisarmFreeze}) }, "n2", "HA is disarmed"},
		"rule":          {func(s *stage) { s.ruled("node-affinity: rule\n\tresources vm:100\n\tnodes n1,n3\n\tstrict 1\n") }, "n2", "n2 is not among the nodes of rule rule"},
		"nothing":       {func(*stage) {}, "n3", ""},
		"no resource":   {func(s *stage) { delete(s.resources, 100) }, "n3", "it is no HA resource"},
		"locked":        {func(s *stage) { g := s.guests[100]; g.Lock = "backup"; s.guests[100] = g }, "n3", "its configuration is locked (backup)"},
		"local storage": {func(s *stage) { g := s.guests[100]; g.Local = "a disk"; s.guests[100] = g }, "n3", "only n1 has a disk"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "n1", "n2", "n3")
			s.guest(100, "n1", pveconf.HAStarted)
			s.run(second)
			c.prepare(s)
			got, _ := s.picture().Refusal(100, ha.Command{Kind: ha.CommandMigrate, Target: c.target})
			if got != c.want {
				t.Errorf("the picture says %q, want %q", got, c.want)
			}
			if c.want != "" {
				return
			}
			s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: c.target})
			s.run(second)
			s.is("vm:100 " + c.target + " started runs")
		})
	}
}

func TestAPictureNamesWhoIsInTheWayAndWhoGoesAlong(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.guest(101, "n2", pveconf.HAStarted)
	s.guest(102, "n1", pveconf.HAStarted)
	s.ruled("resource-affinity: apart\n\tresources vm:100,vm:101\n\taffinity negative\n\nresource-affinity: with\n\tresources vm:100,vm:102\n\taffinity positive\n")
	s.run(second)
	p := s.picture()
	if diff := cmp.Diff([]ha.Block{{SID: "vm:101", Rule: "apart"}}, p.Blocks(100, "n2")); diff != "" {
		t.Error(diff)
	}
	refusal, with := p.Refusal(100, ha.Command{Kind: ha.CommandMigrate, Target: "n3"})
	if diff := cmp.Diff([]string{"vm:102"}, with); refusal != "" || diff != "" {
		t.Errorf("%q %s", refusal, diff)
	}
	s.ruled("node-affinity: near\n\tresources vm:100\n\tnodes n1\n\tstrict 1\n")
	if diff := cmp.Diff([]ha.Block{{SID: "vm:100", ByNodes: true, Rule: "near"}}, s.picture().Blocks(100, "n3")); diff != "" {
		t.Error(diff)
	}
	if got := s.picture().Blocks(101, "n3"); got != nil {
		t.Error(got)
	}
}

// The plan that a person sees is the one that is carried out.
func TestAPictureSaysWhereAGuestGoesWhenItsNodeIsLost(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n2", pveconf.HAStarted)
	s.guest(101, "n3", pveconf.HAStarted)
	s.guest(102, "n3", pveconf.HAStarted)
	s.run(second)
	to, verdicts := s.picture().Elsewhere(100)
	if to == "" || to == "n2" || len(verdicts) != 3 || !verdicts[0].Chosen {
		t.Fatalf("%q, %+v", to, verdicts)
	}
	plan := place.WhatIf(s.picture().Cluster(), "n2")
	if len(plan) != 1 || plan[0].Node != to {
		t.Errorf("%+v", plan)
	}
	s.die("n2")
	s.run(20 * second)
	s.is("vm:100 "+to+" started runs", "vm:101 n3 started runs", "vm:102 n3 started runs")
}

func TestAPictureTellsOfNodesThatTakeNoGuests(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n2", pveconf.HAStarted)
	s.run(second)
	s.store.set(model.HARequestPrefix+"n2", ha.NodeRequest{Disarm: ha.DisarmIgnore})
	p := s.picture()
	if n := p.Node("n2"); n.Disarm != ha.DisarmIgnore || n.Shun == "" || n.State != place.Online {
		t.Errorf("%+v", n)
	}
	if n := p.Node("n9"); n != (ha.NodePicture{}) {
		t.Errorf("%+v", n)
	}
	// Guests of a node that is disarmed are not brought back, and it takes none.
	for _, g := range p.Cluster().Guests {
		if g.HA {
			t.Errorf("%+v", g)
		}
	}
	if plan := place.WhatIf(p.Cluster(), "n2"); len(plan) != 0 {
		t.Errorf("%+v", plan)
	}
}
