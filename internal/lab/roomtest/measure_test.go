//go:build room && measure

package roomtest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/lab/report"
)

var (
	measureOnly  = flag.String("only", "", "rows to measure, separated by commas; all by default")
	measureRuns  = flag.Int("runs", 0, "runs of each row; by default each row's own number")
	measureQuick = flag.Bool("quick", false, "cut the networks for one minute instead of ten, and make ten random faults instead of twenty")
	measureSeed  = flag.Uint64("seed", 0, "what the random faults are drawn from; by default another one each time")
	measureOut   = flag.String("out", filepath.Join("..", "..", "..", "out", "ha"), "directory for summary.json and the logs of runs that failed")
)

// setup says what room a row needs.
type setup struct {
	nodes   int
	profile string
	bmc     bool
}

// row is one line of the table.
type row struct {
	name, what, conditions string
	setup                  setup
	runs                   int
	limit                  time.Duration
	// base is the row whose median is taken off before the limit is applied.
	base string
	// measure makes one run. It ends the test if there is nothing to measure.
	measure func(r *room) time.Duration
}

// measurement is one use of `make ha-measure`.
type measurement struct {
	rows    []row
	timings map[string]*report.Timing
	run     report.Run
	seed    uint64
	rand    *rand.Rand // of what each run does at random

	setup setup
	world *world
}

// tooOften in a row, and a row is given up.
const tooOften = 3

func TestMeasureHighAvailability(t *testing.T) {
	m := &measurement{timings: map[string]*report.Timing{}, seed: *measureSeed}
	if m.seed == 0 {
		m.seed = rand.Uint64()
	}
	m.rand = rand.New(rand.NewPCG(m.seed, 0))
	m.rows = choose(t, m.allRows(), *measureOnly)
	m.run = report.Run{Begin: time.Now(), Host: report.DescribeHost(model.Version{})}
	t.Cleanup(m.leave)
	for _, rw := range m.rows {
		m.make(t, rw)
	}
	m.leave()
	if err := m.report(); err != nil {
		t.Fatal(err)
	}
}

// choose picks rows by name, with those that they are compared with, in the order of the table.
func choose(t *testing.T, all []row, only string) []row {
	t.Helper()
	if only == "" {
		return all
	}
	wanted, names := map[string]bool{}, []string{}
	for _, rw := range all {
		names = append(names, rw.name)
	}
	for name := range strings.SplitSeq(only, ",") {
		i := slices.Index(names, strings.TrimSpace(name))
		if i < 0 {
			t.Fatalf("there is no row %q: the rows are %s", name, strings.Join(names, ", "))
		}
		wanted[all[i].name] = true
		wanted[all[i].base] = true
	}
	return slices.DeleteFunc(slices.Clone(all), func(rw row) bool { return !wanted[rw.name] })
}

// make makes all runs of a row.
func (m *measurement) make(t *testing.T, rw row) {
	runs := rw.runs
	if *measureRuns > 0 {
		runs = *measureRuns
	}
	tm := &report.Timing{
		Name: rw.name, What: rw.what, Limit: rw.limit, Extra: rw.base != "", Base: m.timings[rw.base], Conditions: rw.conditions, Runs: runs,
	}
	m.timings[rw.name] = tm
	failed := 0
	for i := range runs {
		name := fmt.Sprintf("%s-%d", rw.name, i+1)
		if t.Run(name, func(t *testing.T) { m.once(t, rw, tm) }) {
			failed = 0
			continue
		}
		kept := m.keepLogs(name)
		tm.Failures = append(tm.Failures, report.Failure{
			At: time.Since(m.run.Begin), Step: fmt.Sprintf("%s, run %d", rw.name, i+1),
			Reason: fmt.Sprintf("the output of %s says why; the nodes' logs are in %s", name, kept),
		})
		m.leave() // the next run gets a room that nothing has happened in
		if failed++; failed == tooOften {
			break
		}
	}
	t.Logf("%s: %s, all runs: %v", clock(), rw.name, tm.Values)
}

// once makes one run in the row's room.
func (m *measurement) once(t *testing.T, rw row, tm *report.Timing) {
	r := m.enter(t, rw.setup)
	r.AllWell()
	r.began = time.Now()
	took := rw.measure(r)
	t.Logf("%s: %s: %v", clock(), rw.name, took.Round(time.Millisecond))
	tm.Values = append(tm.Values, took)
	for _, v := range r.sampler.violationsSince(r.began) {
		t.Error("two QEMUs of one guest ran at once:", v)
	}
	r.Repair()
	r.AllWell()
	st, err := r.API("n1").HAStatus(r.ctx(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range st.Alarms {
		t.Errorf("alarm of the double-run detector: %s: %s", a.SID, a.Text)
	}
}

// enter brings the run to its room, which is built if it is not there.
func (m *measurement) enter(t *testing.T, s setup) *room {
	t.Helper()
	if m.world != nil && m.setup != s {
		m.leave()
	}
	fresh := m.world == nil
	if fresh {
		w, err := raise(t.Context(), "ha", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		if s.profile != "" {
			w.profile = "--ha-profile " + s.profile
		}
		m.world, m.setup = w, s
	}
	r := enter(t, m.world)
	if fresh {
		r.BuildCluster()
		if s.bmc {
			r.UseBMCs(pveconf.FenceRedfish)
		}
	}
	t.Cleanup(r.Repair)
	return r
}

// leave removes the room. Idempotent.
func (m *measurement) leave() {
	if m.world != nil {
		m.world.close()
		m.world = nil
	}
}

// keepLogs copies the nodes' logs and returns where they are.
func (m *measurement) keepLogs(name string) string {
	dir := filepath.Join(*measureOut, "logs", name)
	if m.world == nil {
		return dir
	}
	_ = os.RemoveAll(dir)
	for _, n := range m.world.names {
		if err := os.CopyFS(filepath.Join(dir, n), os.DirFS(m.world.Log(n))); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(m.world.Dir(), "room.log")); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "room.log"), text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if dir, err := filepath.Abs(dir); err == nil {
		return dir
	}
	return dir
}

// report writes summary.json and prints the table.
func (m *measurement) report() error {
	m.run.Length, m.run.Host.LoadEnd = time.Since(m.run.Begin), report.LoadAverage()
	var table []*report.Timing
	for _, rw := range m.rows {
		tm := m.timings[rw.name]
		table = append(table, tm)
		m.run.Parameters = append(m.run.Parameters, tm.Parameter())
		m.run.Failures = append(m.run.Failures, tm.Failures...)
	}
	text, err := report.Summary(&m.run)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*measureOut, 0o755); err != nil {
		return err
	}
	file, err := filepath.Abs(filepath.Join(*measureOut, "summary.json"))
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		return err
	}
	fmt.Println()
	if err := report.PrintTimings(os.Stdout, table); err != nil {
		return err
	}
	fmt.Printf("\nseed %d, load %.1f to %.1f, %v\nsummary  %s\n", m.seed, m.run.Host.LoadBegin, m.run.Host.LoadEnd, m.run.Length.Round(time.Second), file)
	if !m.run.Passed() {
		return fmt.Errorf("not every target was met")
	}
	return nil
}
