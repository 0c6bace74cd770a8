package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"sauh.dev/sauh/internal/lab/report"
)

// prepareOut makes the directory for the report and removes what an earlier run left in it.
func (d *demo) prepareOut() error {
	probes := filepath.Join(d.Out, "probes")
	for _, old := range []string{probes, d.logsPath(), d.summaryPath(), d.reportPath(), d.dataPath()} {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("clear %s: %w", d.Out, err)
		}
	}
	if err := os.MkdirAll(probes, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", d.Out, err)
	}
	return nil
}

func (d *demo) summaryPath() string { return filepath.Join(d.Out, "summary.json") }
func (d *demo) reportPath() string  { return filepath.Join(d.Out, "report.html") }

// dataPath is all that the page was made from, for those who compare runs.
func (d *demo) dataPath() string { return filepath.Join(d.Out, "run.json") }
func (d *demo) logsPath() string { return filepath.Join(d.Out, "logs") }

// keepLogs copies the nodes' logs, which go with the room.
func (d *demo) keepLogs() error {
	for _, n := range d.run.Nodes {
		if err := os.CopyFS(filepath.Join(d.logsPath(), n), os.DirFS(d.room.Log(n))); err != nil {
			return fmt.Errorf("keep the logs of %s: %w", n, err)
		}
	}
	return nil
}

// finish closes what is open and judges. Nothing runs in the background any more.
func (d *demo) finish() {
	d.run.Length = d.clock.now()
	d.closeWindow()
	for i := range d.run.Timeline {
		spans := d.run.Timeline[i].Spans
		for j := range spans {
			if spans[j].To == 0 {
				spans[j].To = d.run.Length
			}
		}
	}
	d.closeUps()
	d.run.Host.LoadEnd = report.LoadAverage()
	d.run.Parameters = judge(&d.run)
}

// writeReport writes both files and prints the table.
func (d *demo) writeReport() error {
	summary, err := report.Summary(&d.run)
	if err != nil {
		return err
	}
	page, err := report.HTML(&d.run)
	if err != nil {
		return err
	}
	data, err := json.Marshal(&d.run)
	if err != nil {
		return err
	}
	err = errors.Join(os.WriteFile(d.summaryPath(), summary, 0o644), os.WriteFile(d.reportPath(), page, 0o644), os.WriteFile(d.dataPath(), data, 0o644))
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	printTable(d.Stdout, &d.run)
	fmt.Fprintf(d.Stdout, "\nreport   %s\nsummary  %s\n\n", d.reportPath(), d.summaryPath())
	return nil
}

// printTable prints each parameter's checks with target, measured value and verdict.
func printTable(w io.Writer, r *report.Run) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PARAMETER\tMEASURED HOW\tTARGET\tMEASURED\tVERDICT")
	for _, p := range r.Parameters {
		name := p.Name
		for _, c := range p.Checks {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name, c.Name, c.Target, report.Value(c.Measured, c.Unit), passFail(c.Pass))
			name = ""
		}
	}
	_ = t.Flush() // standard output that is gone has nobody to tell
	for _, f := range r.Failures {
		fmt.Fprintf(w, "\nfailed after %s: %s\n  %s\n", f.At.Round(100*time.Millisecond), f.Step, strings.ReplaceAll(f.Reason, "\n", "\n  "))
	}
	fmt.Fprintf(w, "\nverdict: %s, after %s\n", passFail(r.Passed()), r.Length.Round(time.Second))
}

func passFail(ok bool) string {
	if ok {
		return "pass"
	}
	return "FAIL"
}
