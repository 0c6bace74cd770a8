package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// lives is how many lives the unit tests live; `make sim` lives 10,000.
func lives() int {
	if raced {
		return 40
	}
	return 300
}

func TestALifeWithoutFaultsBreaksNoRule(t *testing.T) {
	for seed := range uint64(40) {
		r := Run(Options{Seed: seed, Given: true})
		if r.Violation != nil {
			t.Fatalf("seed %d: %s", seed, r.Violation)
		}
		if r.Placement != "" {
			r.Moves = 0 // the rule may want some
		}
		if r.Cuts+r.Moves+r.Resets > 0 {
			t.Errorf("seed %d: %d cuts, %d moves, %d resets in a life without faults", seed, r.Cuts, r.Moves, r.Resets)
		}
	}
}

func TestALifeIsTheSameEachTime(t *testing.T) {
	for seed := range uint64(20) {
		var a, b bytes.Buffer
		Run(Options{Seed: seed, Trace: &a})
		Run(Options{Seed: seed, Trace: &b})
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("seed %d has two lives", seed)
		}
	}
}

func TestTracingChangesNothing(t *testing.T) {
	for seed := range uint64(20) {
		var trace bytes.Buffer
		a, b := Run(Options{Seed: seed, Trace: &trace}), Run(Options{Seed: seed})
		if a.Events != b.Events || a.Commits != b.Commits {
			t.Errorf("seed %d: %d events and %d commits with a trace, %d and %d without", seed, a.Events, a.Commits, b.Events, b.Commits)
		}
	}
}

func TestLivesWithFaultsBreakNoRule(t *testing.T) {
	sum := Many{Seeds: lives(), Workers: 2, Now: time.Now}.Live(t.Context())
	for _, r := range sum.Broken {
		t.Errorf("seed %d: %s\n  sauh sim --seed %d --trace", r.Seed, r.Violation, r.Seed)
	}
	if sum.Cuts == 0 || sum.Resets == 0 || sum.LateWrites == 0 || sum.Moves == 0 {
		t.Errorf("the faults do nothing: %+v", sum)
	}
}

func TestEachKindOfFaultIsInjected(t *testing.T) {
	if raced {
		t.Skip("needs more lives than the race detector has time for")
	}
	sum := Many{Seeds: lives(), Workers: 2, Now: time.Now}.Live(t.Context())
	for _, k := range weighted() {
		if sum.Injected[k.kind] == 0 {
			t.Errorf("%s was never injected in %d lives", k.kind, lives())
		}
	}
}

// plans reports whether a fault of the kind is to happen.
func (s *sim) plans(kind Kind) bool {
	return slices.ContainsFunc(s.plan.Faults, func(f Fault) bool { return f.Kind == kind })
}

func TestAtTheEndEverythingIsArmedAndInService(t *testing.T) {
	struck := map[Kind]int{}
	dark := 0
	for seed := range uint64(100) {
		s := newLife(Options{Seed: seed})
		if !s.plans(faultOrderly) && !s.plans(faultMaintenance) && !s.plans(faultDisarm) {
			continue
		}
		s.live()
		for kind, n := range s.result.Injected {
			struck[kind] += n
		}
		if s.dark != nil {
			dark++
		}
		if mode, _ := s.store.data[model.HAModeKey].val.(ha.Mode); mode != (ha.Mode{}) {
			t.Errorf("seed %d: the cluster is still disarmed: %+v", seed, mode)
		}
		for _, n := range s.nodes {
			if asked, _ := s.store.data[model.HARequestPrefix+n.name].val.(ha.NodeRequest); asked != (ha.NodeRequest{}) {
				t.Errorf("seed %d: %s is still asked for %+v", seed, n.name, asked)
			}
		}
	}
	if struck[faultOrderly] == 0 || struck[faultMaintenance] == 0 || struck[faultDisarm] == 0 || dark == 0 {
		t.Errorf("too few faults to say so: %v, %d nodes without power", struck, dark)
	}
}

func TestANodeEndsInOrderUnderEachPolicyAndSaysGoodbye(t *testing.T) {
	left := map[ha.ShutdownPolicy]map[ha.NodeEnd]bool{}
	for seed := range uint64(200) {
		s := newLife(Options{Seed: seed})
		if !s.plans(faultOrderly) {
			continue
		}
		s.live()
		policy := s.shutdownPolicy()
		for _, n := range s.nodes {
			if n.ended.left > 0 {
				if left[policy] == nil {
					left[policy] = map[ha.NodeEnd]bool{}
				}
				left[policy][n.ended.how] = true
			}
		}
	}
	want := map[ha.NodeEnd]bool{ha.EndsReboot: true, ha.EndsShutdown: true}
	for _, p := range []ha.ShutdownPolicy{ha.ShutdownConditional, ha.ShutdownFreeze, ha.ShutdownFailover, ha.ShutdownMigrate} {
		if diff := cmp.Diff(want, left[p]); diff != "" {
			t.Errorf("policy %s, ends after which a node said goodbye (-want +got):\n%s", p, diff)
		}
	}
}

// seedsCommand is what finds the seeds of the table anew.
const seedsCommand = "`sauh sim mutations --find` finds seeds anew: write them into Mutations() and into the table of docs/simulator.md"

func TestPlantedBugsAreFound(t *testing.T) {
	for _, m := range Mutations() {
		r := Run(Options{Seed: m.Seed, Mutation: m.Name})
		switch {
		case r.Violation == nil:
			t.Errorf("%s (%s): seed %d finds it no more; %s", m.Name, m.What, m.Seed, seedsCommand)
		case r.Violation.Rule != m.Rule:
			t.Errorf("%s (%s): seed %d breaks %s by it, the table says %s; %s", m.Name, m.What, m.Seed, r.Violation.Rule, m.Rule, seedsCommand)
		}
		if sound := Run(Options{Seed: m.Seed}); sound.Violation != nil {
			t.Errorf("seed %d breaks a rule without %s too: %s", m.Seed, m.Name, sound.Violation)
		}
	}
	if n := len(Mutations()); n < 40 {
		t.Errorf("%d planted bugs are found, 40 must be", n)
	}
}

func TestShrinkingKeepsTheRuleAndLosesFaults(t *testing.T) {
	for seed := range uint64(200) {
		o := Options{Seed: seed, Mutation: "freeze-nothing"}
		r := Run(o)
		if r.Violation == nil || len(r.Plan.Faults) < 3 {
			continue
		}
		s := Shrink(o, r)
		if s.Violation == nil || s.Violation.Rule != r.Violation.Rule || len(s.Plan.Faults) >= len(r.Plan.Faults) {
			t.Errorf("seed %d: shrunk from %d faults and %v to %d faults and %v", seed, len(r.Plan.Faults), r.Violation, len(s.Plan.Faults), s.Violation)
		}
		return
	}
	t.Fatal("none of 200 seeds with three faults or more finds the planted bug: freeze-nothing is found no more")
}

// scenarios are the reference's own, trimmed to what is read.
func scenarios(t *testing.T) []Scenario {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "scenarios.json"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := ReadScenarios(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTheReferencesScenariosAgree(t *testing.T) {
	all := scenarios(t)
	if len(all) != 76 {
		t.Fatalf("%d scenarios, want 76", len(all))
	}
	for i := range all {
		if raced && i%8 != 0 {
			continue
		}
		t.Run(all[i].Name, func(t *testing.T) {
			if v := RunScenario(&all[i], nil); !v.OK {
				t.Errorf("%s", strings.Join(v.Differs, "\n"))
			}
		})
	}
}

func TestAScenarioThatEndsOtherwiseIsToldApart(t *testing.T) {
	sc := scenarios(t)[0]
	for sid, f := range sc.Outcome.Final {
		f.Node = "node9"
		sc.Outcome.Final[sid] = f
	}
	if v := RunScenario(&sc, nil); v.OK || len(v.Differs) != len(sc.Outcome.Final) {
		t.Errorf("got %+v, want a difference for each service", v)
	}
}

func TestACommandThatIsNotKnownIsADifference(t *testing.T) {
	sc := scenarios(t)[0]
	sc.Outcome.Commands = append(sc.Outcome.Commands, [2]any{130.0, "service vm:101 dance"})
	v := RunScenario(&sc, nil)
	if v.OK || !strings.Contains(strings.Join(v.Differs, " "), "dance") {
		t.Errorf("got %+v", v)
	}
}

func TestEachExceptionIsAScenarioWithAReasonAndDifferences(t *testing.T) {
	names := map[string]bool{}
	for _, sc := range scenarios(t) {
		names[sc.Name] = true
	}
	for _, e := range Exceptions() {
		if !names[e.Name] || e.Reason == "" || len(e.Differs) == 0 {
			t.Errorf("exception %+v", e)
		}
	}
}

// exceptions are the scenarios that are accepted although they differ.
func exceptions(t *testing.T) []Scenario {
	t.Helper()
	return slices.DeleteFunc(scenarios(t), func(sc Scenario) bool {
		return !slices.ContainsFunc(Exceptions(), func(e Exception) bool { return e.Name == sc.Name })
	})
}

func TestAnExceptionThatBreaksARuleFails(t *testing.T) {
	for _, sc := range exceptions(t) {
		v := runScenario(&sc, mutStartUnguarded, nil)
		if v.OK || v.Accepted != "" || !strings.Contains(strings.Join(v.Differs, " "), string(ruleGuarded)) {
			t.Errorf("got %+v, want a broken rule", v)
		}
	}
}

func TestAnExceptionThatDiffersInMoreOrInLessFails(t *testing.T) {
	for _, sc := range exceptions(t) {
		more := sc
		more.Outcome.Commands = append(slices.Clone(sc.Outcome.Commands), [2]any{130.0, "service vm:101 dance"})
		if v := RunScenario(&more, nil); v.OK || v.Accepted != "" {
			t.Errorf("%s is accepted with a command that is not known", sc.Name)
		}
		before := RunScenario(&sc, nil)
		for _, g := range before.Differs { // the reference as ours
			sid, _, _ := strings.Cut(g, " ")
			f := sc.Outcome.Final[sid]
			f.Node, f.State, f.Running = map[string]string{"vm:103": "node3", "fa:109": "node3"}[sid], "started", true
			if sc.Name == "test-service-command7" {
				f.Node = "node1"
			}
			sc.Outcome.Final[sid] = f
		}
		if v := RunScenario(&sc, nil); !before.OK || v.OK || v.Accepted != "" {
			t.Errorf("%s: accepted before: %v, and without its difference: %v", sc.Name, before.OK, v.OK)
		}
	}
}

func TestTheManualListsPlantedBugsAndExceptions(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "simulator.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range Mutations() {
		row := fmt.Sprintf("| %s | %s | %d | %s |", m.Name, m.What, m.Seed, m.Rule)
		if !bytes.Contains(text, []byte("\n"+row+"\n")) {
			t.Errorf("docs/simulator.md does not have the row\n%s\n%s", row, seedsCommand)
		}
	}
	for _, e := range Exceptions() {
		if !bytes.Contains(text, []byte(e.Name)) {
			t.Errorf("docs/simulator.md does not list %s", e.Name)
		}
	}
}

func TestAResultIsJSON(t *testing.T) {
	r := Run(Options{Seed: 3, Length: time.Minute})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(text, &back); err != nil || back.Events != r.Events {
		t.Errorf("got %+v, %v", back, err)
	}
}

func BenchmarkLife(b *testing.B) {
	seed := uint64(0)
	for b.Loop() {
		Run(Options{Seed: seed})
		seed++
	}
}
