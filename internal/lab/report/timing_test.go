package report

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func secs(v ...float64) (out []time.Duration) {
	for _, s := range v {
		out = append(out, time.Duration(s*float64(time.Second)))
	}
	return out
}

// Each row is one change of a measurement that passes.
func TestATimingPassesOnlyIfEveryRunWasMadeAndTheMedianIsWithinTheLimit(t *testing.T) {
	base := &Timing{Name: "plain", Values: secs(3)}
	for name, c := range map[string]struct {
		timing Timing
		want   bool
	}{
		"at the limit":                 {Timing{Limit: 4 * time.Second, Runs: 3, Values: secs(1, 9, 4)}, true},
		"above it":                     {Timing{Limit: 4 * time.Second, Runs: 3, Values: secs(1, 9, 4.01)}, false},
		"no limit":                     {Timing{Runs: 1, Values: secs(100)}, true},
		"a run without a value":        {Timing{Limit: 4 * time.Second, Runs: 3, Values: secs(1, 2)}, false},
		"a run that failed":            {Timing{Limit: 4 * time.Second, Runs: 1, Values: secs(1), Failures: []Failure{{Step: "x"}}}, false},
		"nothing measured":             {Timing{Limit: 4 * time.Second}, false},
		"two seconds above the base":   {Timing{Limit: 2 * time.Second, Extra: true, Base: base, Runs: 1, Values: secs(5)}, true},
		"more above the base":          {Timing{Limit: 2 * time.Second, Extra: true, Base: base, Runs: 1, Values: secs(5.01)}, false},
		"a base that was not measured": {Timing{Limit: 2 * time.Second, Extra: true, Base: &Timing{}, Runs: 1, Values: secs(1)}, false},
		"no base":                      {Timing{Limit: 2 * time.Second, Extra: true, Runs: 1, Values: secs(1)}, false},
	} {
		if got := c.timing.Pass(); got != c.want {
			t.Errorf("%s: pass %v, want %v", name, got, c.want)
		}
		if p := c.timing.Parameter(); p.Pass != c.want {
			t.Errorf("%s: the parameter's pass is %v, want %v", name, p.Pass, c.want)
		}
	}
}

func TestTimingsArePrintedAsATable(t *testing.T) {
	plain := &Timing{Name: "plain", What: "power cut", Limit: 4 * time.Second, Conditions: "ledger whole", Runs: 2, Values: secs(3, 3.5)}
	leader := &Timing{
		Name: "leader", What: "the leader's", Limit: 2 * time.Second, Extra: true, Base: plain, Runs: 2, Values: secs(6),
		Failures: []Failure{{Step: "leader, run 2", Reason: "see logs"}},
	}
	var b strings.Builder
	if err := PrintTimings(&b, []*Timing{plain, leader}); err != nil {
		t.Fatal(err)
	}
	want := `ROW     MEASURED      TARGET                 P50               MAX     RUNS    VERDICT
plain   power cut     ≤ 4 s; ledger whole    3.25 s            3.50 s  2 of 2  pass
leader  the leader's  ≤ 2 s more than plain  6.00 s (+2.75 s)  6.00 s  1 of 2  FAIL

failed: leader, run 2: see logs
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
