package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/sim"
)

// simCommand simulates clusters: no agent is asked.
func (m *Main) simCommand() *cobra.Command {
	o := simOptions{m: m}
	cmd := &cobra.Command{
		Use: "sim", Short: "Live simulated clusters with faults, and check that no disk ever has two writers",
		Example: "  sauh sim --seeds 1000\n  sauh sim --seed 42 --trace\n  sauh sim --seconds 3600\n  sauh sim scenarios FILE.json",
		Args:    takes(),
	}
	f := cmd.Flags()
	f.IntVar(&o.seeds, "seeds", 1000, "how many lives, each with a seed of its own")
	f.Uint64Var(&o.first, "first", 0, "the first seed")
	f.IntVar(&o.seconds, "seconds", 0, "live new lives for so long, whatever --seeds says")
	f.Int64Var(&o.seed, "seed", -1, "live this one life alone; seeds count from 0")
	f.BoolVar(&o.trace, "trace", false, "with --seed: print all that happens")
	f.StringVar(&o.keep, "faults", "", "with --seed: keep only these of its faults, such as 0,3; none for no fault")
	f.BoolVar(&o.shrink, "shrink", true, "shrink the first broken life to the fewest faults")
	f.StringVar(&o.mutation, "mutation", "", "plant this bug; 'sauh sim mutations' lists them")
	f.IntVar(&o.workers, "workers", 2, "how many lives at a time")
	out := m.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.out = out
		if err := o.check(cmd); err != nil {
			return err
		}
		if o.seed >= 0 {
			return o.one(cmd)
		}
		return o.many(cmd.Context())
	}
	cmd.AddCommand(m.simScenarios(), m.simMutations())
	return cmd
}

type simOptions struct {
	m              *Main
	out            *output
	seeds, seconds int
	first          uint64
	seed           int64
	trace, shrink  bool
	keep, mutation string
	workers        int
}

// check refuses what would be lived otherwise than it was asked for.
func (o *simOptions) check(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	for _, f := range []struct {
		name       string
		value, min int64
	}{{"seed", o.seed, 0}, {"seeds", int64(o.seeds), 1}, {"seconds", int64(o.seconds), 1}, {"workers", int64(o.workers), 1}} {
		if given(f.name) && f.value < f.min {
			return usageError(cmd, "--%s is at least %d, not %d", f.name, f.min, f.value)
		}
	}
	one, many := []string{"faults", "trace"}, []string{"seeds", "seconds", "first"}
	for _, f := range one {
		if given(f) && !given("seed") {
			return usageError(cmd, "--%s is about one life: give --seed too", f)
		}
	}
	for _, f := range many {
		if given(f) && given("seed") {
			return usageError(cmd, "--seed is one life: leave out --%s", f)
		}
	}
	switch {
	case o.trace && o.out.json():
		return usageError(cmd, "--trace is no JSON: leave out one of --trace and --output json")
	case o.mutation != "" && !sim.KnownMutation(o.mutation):
		return usageError(cmd, "there is no planted bug %q: 'sauh sim mutations' lists them", o.mutation)
	}
	return nil
}

// faults are those of the plan that --faults names: numbers separated by commas, or none.
func (o *simOptions) faults(cmd *cobra.Command, plan sim.Plan) ([]sim.Fault, error) {
	if o.keep == "none" {
		return nil, nil
	}
	var out []sim.Fault
	for _, s := range strings.Split(o.keep, ",") {
		i, err := strconv.Atoi(s)
		if err != nil || i < 0 || i >= len(plan.Faults) {
			return nil, usageError(cmd, "seed %d has no fault %q: it has %d, counted from 0; none is for no fault", o.seed, s, len(plan.Faults))
		}
		out = append(out, plan.Faults[i])
	}
	return out, nil
}

// one lives one life and shows it.
func (o *simOptions) one(cmd *cobra.Command) error {
	opts := sim.Options{Seed: uint64(o.seed), Mutation: o.mutation}
	if cmd.Flags().Changed("faults") {
		var err error
		if opts.Faults, err = o.faults(cmd, sim.PlanOf(opts.Seed)); err != nil {
			return err
		}
		opts.Given = true
	}
	if o.trace {
		opts.Trace = o.m.Stdout
	}
	r := sim.Run(opts)
	if err := o.out.print(r, func(w io.Writer) { printLife(w, r) }); err != nil {
		return err
	}
	if r.Violation == nil {
		return nil
	}
	o.shrunk(opts, r)
	return fmt.Errorf("seed %d: %s", r.Seed, r.Violation)
}

// shrunk prints the fewest faults with which the same rule breaks.
func (o *simOptions) shrunk(opts sim.Options, r sim.Result) {
	if !o.shrink || o.out.json() {
		return
	}
	s := sim.Shrink(opts, r)
	plan := sim.PlanOf(r.Seed)
	var keep []string
	for _, f := range s.Plan.Faults {
		keep = append(keep, strconv.Itoa(slices.Index(plan.Faults, f)))
	}
	if len(keep) == 0 {
		keep = []string{"none"}
	}
	command := fmt.Sprintf("sauh sim --seed %d --faults %s --trace", r.Seed, strings.Join(keep, ","))
	if o.mutation != "" {
		command += " --mutation " + o.mutation
	}
	o.m.say("shrunk to %d of %d faults: %s\n  %s", len(s.Plan.Faults), len(r.Plan.Faults), command, s.Violation)
}

func printLife(w io.Writer, r sim.Result) {
	for i, f := range r.Plan.Faults {
		fmt.Fprintf(w, "%3d %s\n", i, f)
	}
	verdict := "no rule was broken"
	if r.Violation != nil {
		verdict = r.Violation.String()
	}
	facts(w, "Seed", strconv.FormatUint(r.Seed, 10), "Events", number(r.Events), "Nodes cut off", number(r.Cuts),
		"Guests moved", number(r.Moves), "Machines reset", number(r.Resets), "Verdict", verdict)
}

// many lives many lives.
func (o *simOptions) many(ctx context.Context) error {
	seeds := o.seeds
	if o.seconds > 0 {
		seeds = 0
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.seconds)*time.Second)
		defer cancel()
	}
	sum := sim.Many{First: o.first, Seeds: seeds, Workers: o.workers, Mutation: o.mutation, Now: o.m.Now}.Live(ctx)
	if err := o.out.print(sum, func(w io.Writer) { printLives(w, sum) }); err != nil {
		return err
	}
	if len(sum.Broken) == 0 {
		return nil
	}
	r := sum.Broken[0]
	o.shrunk(sim.Options{Seed: r.Seed, Mutation: o.mutation}, r)
	return fmt.Errorf("%d of %d lives broke a rule; the first is seed %d: %s", len(sum.Broken), sum.Seeds, r.Seed, r.Violation)
}

func printLives(w io.Writer, s sim.Summary) {
	facts(w, "Lives", fmt.Sprintf("%d (%.1f/s)", s.Seeds, s.LivesPerSecond), "Simulated", fmt.Sprintf("%.1f h (%.1f h/s)", s.Hours, s.HoursPerSecond),
		"Faults", number(s.Faults), "Nodes cut off", number(s.Cuts), "Nodes shot", number(s.Shots), "Machines reset", number(s.Resets),
		"Guests moved", number(s.Moves), "Late writes", number(s.LateWrites), "Broken lives", strconv.Itoa(len(s.Broken)))
	rows := [][]string{{"FAULT", "INJECTED"}}
	for _, k := range slices.Sorted(maps.Keys(s.Injected)) {
		rows = append(rows, []string{string(k), strconv.Itoa(s.Injected[k])})
	}
	fmt.Fprintln(w)
	table(w, rows...)
	for i, r := range s.Broken {
		if i == 20 {
			fmt.Fprintf(w, "… and %d more\n", len(s.Broken)-i)
			break
		}
		fmt.Fprintf(w, "seed %d: %s\n", r.Seed, r.Violation)
	}
}

// simScenarios runs the scenarios of a file.
func (m *Main) simScenarios() *cobra.Command {
	only, trace := "", false
	cmd := &cobra.Command{
		Use: "scenarios FILE", Short: "Run the scenarios of a file and compare their outcomes", Example: "  sauh sim scenarios ha-scenarios.json --only test-basic1",
		Args: takes("a file of scenarios"),
	}
	cmd.Flags().StringVar(&only, "only", "", "run this one alone")
	cmd.Flags().BoolVar(&trace, "trace", false, "with --only: print all that happens")
	out := m.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case trace && only == "":
			return usageError(cmd, "--trace is about one scenario: give --only too")
		case trace && out.json():
			return usageError(cmd, "--trace is no JSON: leave out one of --trace and --output json")
		}
		file, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("read scenarios: %w", err)
		}
		defer file.Close()
		all, err := sim.ReadScenarios(file)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		var verdicts []sim.Verdict
		bad := 0
		for i := range all {
			if only != "" && all[i].Name != only {
				continue
			}
			var w io.Writer
			if trace {
				w = m.Stdout
			}
			v := sim.RunScenario(&all[i], w)
			if !v.OK {
				bad++
			}
			verdicts = append(verdicts, v)
		}
		switch {
		case len(all) == 0:
			return fmt.Errorf("%s has no scenarios: write {\"scenarios\": […]}", args[0])
		case len(verdicts) == 0:
			return fmt.Errorf("%s has no scenario %q", args[0], only)
		}
		if err := out.print(verdicts, func(w io.Writer) { printVerdicts(w, verdicts) }); err != nil {
			return err
		}
		if bad > 0 {
			return fmt.Errorf("%d of %d scenarios differ", bad, len(verdicts))
		}
		return nil
	}
	return cmd
}

func printVerdicts(w io.Writer, verdicts []sim.Verdict) {
	for _, v := range verdicts {
		word := "agrees"
		switch {
		case v.Accepted != "":
			word = "accepted: " + v.Accepted
		case !v.OK:
			word = "DIFFERS: " + strings.Join(v.Differs, "; ")
		case v.Balance != "":
			word += ", " + v.Balance
		case v.Recovery > 0:
			word += fmt.Sprintf(", recovers in %d %% of the reference's time", v.Recovery)
		}
		fmt.Fprintf(w, "%-64s %s\n", v.Name, word)
	}
}

// simMutations lists the planted bugs.
func (m *Main) simMutations() *cobra.Command {
	cmd := &cobra.Command{
		Use: "mutations", Short: "List the bugs that can be planted to try the simulator, or plant each and find it",
		Example: "  sauh sim mutations --find", Args: takes(),
	}
	find, seeds := false, 10_000
	cmd.Flags().BoolVar(&find, "find", false, "plant each and live until a life finds it")
	cmd.Flags().IntVar(&seeds, "seeds", seeds, "with --find: how many lives at most")
	out := m.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case cmd.Flags().Changed("seeds") && !find:
			return usageError(cmd, "--seeds is about --find: give that too")
		case seeds < 1:
			return usageError(cmd, "--seeds is at least 1, not %d", seeds)
		}
		all := sim.Mutations()
		var missed error
		if find {
			missed = findMutations(cmd.Context(), all, seeds)
		}
		return errors.Join(out.print(all, func(w io.Writer) {
			rows := [][]string{{"NAME", "FOUND BY SEED", "RULE", "WHAT IT DOES"}}
			for _, mu := range all {
				seed := strconv.FormatUint(mu.Seed, 10)
				if mu.Rule == notFound {
					seed = ""
				}
				rows = append(rows, []string{mu.Name, seed, string(mu.Rule), mu.What})
			}
			table(w, rows...)
		}), missed)
	}
	return cmd
}

// notFound stands in the place of the rule that a planted bug broke.
const notFound = "not found"

// findMutations fills in which seed finds each planted bug, and which rule that breaks; a bug that none finds is an error.
func findMutations(ctx context.Context, all []sim.Mutation, seeds int) error {
	var missed []string
	for i := range all {
		r, ok := sim.Find(ctx, all[i], seeds, 2)
		if !ok {
			missed = append(missed, all[i].Name)
			all[i].Seed, all[i].Rule = 0, notFound
			continue
		}
		all[i].Seed, all[i].Rule = r.Seed, r.Violation.Rule
	}
	if ctx.Err() == nil && len(missed) > 0 {
		return fmt.Errorf("%d of %d planted bugs are not found within %d lives: %s", len(missed), len(all), seeds, strings.Join(missed, ", "))
	}
	return ctx.Err()
}
