package report

import (
	"bytes"
	_ "embed" // the page's template and style
	"fmt"
	"html/template"
	"time"
)

//go:embed page.html
var pageTemplate string

//go:embed page.css
var pageStyle string

// page is what the template sees.
type page struct {
	*Run
	Style                        template.CSS
	Headline                     string
	Met                          int
	Steps                        []stepRow
	Gaps, Timeline, Quorum       template.HTML
	Moves                        []moveRow
	FailoverCharts               []failoverRow
	CPU, Memory                  []loadRow
	Acknowledged, Missing, Wrong int
	TransferSummary              string
	Unquorate                    []Poll
}

type stepRow struct {
	Number  int
	Title   string
	Begin   string
	Seconds string
}

type moveRow struct {
	Number int
	Move   Migration
	Chart  template.HTML
}

type failoverRow struct {
	Failover
	Chart                            template.HTML
	Start, Answer, Back, FencedAfter string
}

type loadRow struct {
	Node  string
	Chart template.HTML
}

// HTML returns report.html.
func HTML(r *Run) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"value": Value, "ms": sayMS, "sec": saySeconds, "long": sayLong, "group": func(n int) string { return group(fmt.Sprint(n)) },
		"node": func(i int) int { return i%3 + 1 },
		"mib":  func(n int64) string { return figure(float64(n) / (1 << 20)) },
	}).Parse(pageTemplate)
	if err != nil {
		return nil, fmt.Errorf("parse page: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, newPage(r)); err != nil {
		return nil, fmt.Errorf("write page: %w", err)
	}
	return b.Bytes(), nil
}

func newPage(r *Run) page {
	p := page{
		Run: r, Style: template.CSS(pageStyle), Gaps: gapsChart(r), Timeline: timelineChart(r), Quorum: quorumChart(r), //nolint:gosec // embedded
		Steps: stepRows(r), Moves: moveRows(r), FailoverCharts: failoverRows(r),
	}
	p.Acknowledged, p.Missing, p.Wrong = Totals(r.Ledger)
	for _, m := range r.Parameters {
		if m.Pass {
			p.Met++
		}
	}
	for _, q := range r.Polls {
		if !q.Quorate {
			p.Unquorate = append(p.Unquorate, q)
		}
	}
	p.TransferSummary = transferSummary(r.Transfers)
	p.Headline = headline(r, p.Met)
	cpu, memory := highest(r.Load, coresOf), highest(r.Load, mebibytesOf)
	for _, l := range r.Load {
		p.CPU = append(p.CPU, loadRow{l.Node, loadChart(r, l, "CPU, cores", cpu, coresOf)})
		p.Memory = append(p.Memory, loadRow{l.Node, loadChart(r, l, "memory, MiB", memory, mebibytesOf)})
	}
	return p
}

func headline(r *Run, met int) string {
	switch {
	case r.Passed():
		return fmt.Sprintf("All %s targets met", words(len(r.Parameters)))
	case len(r.Parameters) == 0:
		return "Nothing was measured"
	case met == len(r.Parameters):
		return "Targets met, but a step went wrong"
	}
	return fmt.Sprintf("%d of %d targets met", met, len(r.Parameters))
}

func transferSummary(all []Transfer) string {
	streams, downloads, wrong := 0, 0, 0
	for _, t := range all {
		if t.Kind == "stream" {
			streams++
		} else {
			downloads++
		}
		if !t.OK {
			wrong++
		}
	}
	return fmt.Sprintf("%d streams and %d downloads, of which %d broke or came with other content", streams, downloads, wrong)
}

func words(n int) string {
	if n == 4 {
		return "four"
	}
	return fmt.Sprint(n)
}

func stepRows(r *Run) []stepRow {
	var rows []stepRow
	for _, l := range r.Timeline {
		if l.Name != "steps" {
			continue
		}
		for i, s := range l.Spans {
			rows = append(rows, stepRow{i + 1, s.Label, saySeconds(s.From), saySeconds(s.To - s.From)})
		}
	}
	return rows
}

func moveRows(r *Run) []moveRow {
	var rows []moveRow
	for i, m := range r.Migrations {
		rows = append(rows, moveRow{i + 1, m, pairChart(m)})
	}
	return rows
}

func failoverRows(r *Run) []failoverRow {
	var rows []failoverRow
	for _, f := range r.Failovers {
		row := failoverRow{Failover: f, Start: "not started", Answer: "no answer", Back: "did not come back", FencedAfter: "not seen"}
		if d, ok := f.ToStart(); ok {
			row.Start = saySeconds(d)
		}
		if d, ok := f.ToAnswer(); ok {
			row.Answer = saySeconds(d)
		}
		if f.Fenced > 0 {
			row.FencedAfter = saySeconds(f.Fenced - f.Cut)
		}
		if f.Member > 0 {
			row.Back = saySeconds(f.Member - f.PowerOn)
		}
		row.Chart = failoverChart(f)
		rows = append(rows, row)
	}
	return rows
}

func sayMS(d time.Duration) string {
	return figure(float64(d.Round(time.Millisecond)/time.Millisecond)) + " ms"
}

func saySeconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// sayLong prints minutes and seconds.
func sayLong(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s < 60 {
		return fmt.Sprintf("%d s", s)
	}
	return fmt.Sprintf("%d min %d s", s/60, s%60)
}
