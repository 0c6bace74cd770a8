package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// summary is the form of summary.json.
type summary struct {
	Verdict    string      `json:"verdict"`
	Parameters []Parameter `json:"parameters"`
	Migrations []migration `json:"migrations"`
	Failovers  []failover  `json:"failovers"`
	Ledger     ledger      `json:"ledger"`
	Host       Host        `json:"host"`
	Begin      string      `json:"begin"`
	Seconds    float64     `json:"seconds"`
	Failures   []Failure   `json:"failures"`
}

type migration struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	GapMS   *float64 `json:"gap_ms"`
	TotalMS *float64 `json:"total_ms"`
	BareMS  *float64 `json:"bare_gap_ms"`
}

type failover struct {
	Kind      string   `json:"kind"`
	Node      string   `json:"node"`
	ToStartS  *float64 `json:"to_start_s"`
	ToAnswerS *float64 `json:"to_answer_s"`
}

type ledger struct {
	Acknowledged int `json:"acknowledged"`
	Lost         int `json:"lost"`
	Wrong        int `json:"wrong"`
}

// Summary returns the content of summary.json. What was not measured is null there.
func Summary(r *Run) ([]byte, error) {
	s := summary{
		Verdict: verdict(r), Parameters: append([]Parameter{}, r.Parameters...), Host: r.Host,
		Migrations: []migration{}, Failovers: []failover{}, Failures: append([]Failure{}, r.Failures...),
		Begin: r.Begin.Format(time.RFC3339), Seconds: round(r.Length.Seconds(), 1),
	}
	for _, m := range r.Migrations {
		s.Migrations = append(s.Migrations, migration{
			From: m.Sauh.From, To: m.Sauh.To,
			GapMS: milliseconds(m.Sauh.Gap, m.Sauh.Made()), TotalMS: milliseconds(m.Sauh.Total(), m.Sauh.Made()),
			BareMS: milliseconds(m.Hand.Gap, m.Hand.Made()),
		})
	}
	for _, f := range r.Failovers {
		start, started := f.ToStart()
		answer, answered := f.ToAnswer()
		s.Failovers = append(s.Failovers, failover{f.Kind, f.Node, seconds(start, started), seconds(answer, answered)})
	}
	s.Ledger.Acknowledged, s.Ledger.Lost, s.Ledger.Wrong = Totals(r.Ledger)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		return nil, fmt.Errorf("encode summary: %w", err)
	}
	return b.Bytes(), nil
}

// Totals adds up the ledgers of all guests. Each check reads a whole ledger, so
// a guest's acknowledgements are those of its last check, and its damage the worst that any check saw.
func Totals(checks []LedgerCheck) (acknowledged, lost, wrong int) {
	acks, losts, wrongs := map[string]int{}, map[string]int{}, map[string]int{}
	for _, c := range checks {
		acks[c.Guest] = max(acks[c.Guest], c.Acknowledged)
		losts[c.Guest] = max(losts[c.Guest], c.Lost)
		wrongs[c.Guest] = max(wrongs[c.Guest], c.Wrong)
	}
	for g := range acks {
		acknowledged, lost, wrong = acknowledged+acks[g], lost+losts[g], wrong+wrongs[g]
	}
	return acknowledged, lost, wrong
}

func verdict(r *Run) string {
	if r.Passed() {
		return "pass"
	}
	return "fail"
}

func milliseconds(d time.Duration, ok bool) *float64 {
	if !ok {
		return nil
	}
	v := round(float64(d)/float64(time.Millisecond), 1)
	return &v
}

func seconds(d time.Duration, ok bool) *float64 {
	if !ok {
		return nil
	}
	v := round(d.Seconds(), 2)
	return &v
}

func round(v float64, digits int) float64 {
	f := math.Pow(10, float64(digits))
	return math.Round(v*f) / f
}
