package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Timing is one row of a table of measurements: a time that was taken in several runs.
type Timing struct {
	// Name is what the row is chosen by, What a few words for a person.
	Name, What string
	// Limit is the target of the median; 0 has none, and only the runs' own conditions count.
	Limit time.Duration
	// Extra means that Limit is for what the median is above that of Base.
	Extra bool
	Base  *Timing
	// Conditions are what each run demanded besides the time.
	Conditions string
	// Values are those of the runs that came to one, in order; Runs is how many were asked for.
	Values []time.Duration
	Runs   int
	// Failures are runs that met a condition not, or came to no value.
	Failures []Failure
}

// Median is the middle of the values, of an even number the mean of the two in the middle; false without any.
func (t *Timing) Median() (time.Duration, bool) {
	s := slices.Sorted(slices.Values(t.Values))
	n := len(s)
	if n == 0 {
		return 0, false
	}
	return (s[(n-1)/2] + s[n/2]) / 2, true
}

// Judged is the time that Limit is for: the median, or what it is above the base's.
func (t *Timing) Judged() (time.Duration, bool) {
	median, ok := t.Median()
	if !ok || !t.Extra {
		return median, ok
	}
	if t.Base == nil {
		return 0, false
	}
	base, ok := t.Base.Median()
	return median - base, ok
}

// Pass says that every run was made and met its conditions, and that the time is within the limit.
func (t *Timing) Pass() bool {
	judged, ok := t.Judged()
	return ok && len(t.Failures) == 0 && len(t.Values) >= t.Runs && (t.Limit == 0 || judged <= t.Limit)
}

// Target is the row's for a person.
func (t *Timing) Target() string {
	var parts []string
	switch {
	case t.Extra && t.Base != nil:
		parts = append(parts, fmt.Sprintf("≤ %g s more than %s", t.Limit.Seconds(), t.Base.Name))
	case t.Limit > 0:
		parts = append(parts, fmt.Sprintf("≤ %g s", t.Limit.Seconds()))
	}
	if t.Conditions != "" {
		parts = append(parts, t.Conditions)
	}
	return strings.Join(parts, "; ")
}

// Parameter is the row in the form of summary.json.
func (t *Timing) Parameter() Parameter {
	p := Parameter{Name: t.Name, Target: t.Target(), Unit: "s", What: t.What, Pass: t.Pass()}
	median := Check{Name: fmt.Sprintf("median of %d runs", len(t.Values)), Unit: "s", Target: t.Target(), Pass: p.Pass, Values: []float64{}}
	for _, v := range t.Values {
		median.Values = append(median.Values, *seconds(v, true))
	}
	if m, ok := t.Median(); ok {
		median.Measured = seconds(m, true)
		median.Note = fmt.Sprintf("longest %.2f s", slices.Max(t.Values).Seconds())
	}
	p.Measured = median.Measured
	p.Checks = []Check{median, {
		Name: "runs that failed", Target: "0", Unit: "", Measured: number(len(t.Failures)), Pass: len(t.Failures) == 0 && len(t.Values) >= t.Runs,
	}}
	return p
}

func number(n int) *float64 {
	v := float64(n)
	return &v
}

// PrintTimings prints the rows as a table.
func PrintTimings(w io.Writer, rows []*Timing) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROW\tMEASURED\tTARGET\tP50\tMAX\tRUNS\tVERDICT")
	for _, r := range rows {
		p50, longest := "-", "-"
		if m, ok := r.Median(); ok {
			p50, longest = fmt.Sprintf("%.2f s", m.Seconds()), fmt.Sprintf("%.2f s", slices.Max(r.Values).Seconds())
		}
		if more, ok := r.Judged(); ok && r.Extra {
			p50 += fmt.Sprintf(" (%+.2f s)", more.Seconds())
		}
		verdict := "pass"
		if !r.Pass() {
			verdict = "FAIL"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d of %d\t%s\n", r.Name, r.What, r.Target(), p50, longest, len(r.Values), r.Runs, verdict)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	for _, r := range rows {
		for _, f := range r.Failures {
			fmt.Fprintf(w, "\nfailed: %s: %s\n", f.Step, f.Reason)
		}
	}
	return nil
}
