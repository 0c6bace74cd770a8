package demo

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
)

func testDemo(t *testing.T) (*demo, *strings.Builder) {
	t.Helper()
	out := &strings.Builder{}
	d := newDemo(Options{Name: "test", Out: t.TempDir(), Stdout: out})
	d.run.Nodes = []string{"n1", "n2", "n3"}
	t.Cleanup(d.stopBackground)
	return d, out
}

func failures(d *demo) []string {
	var out []string
	for _, f := range d.run.Failures {
		out = append(out, f.Step+": "+f.Reason)
	}
	return out
}

func TestAStepThatFailsIsNamedAndTheStoryGoesOnUnlessItIsVital(t *testing.T) {
	d, out := testDemo(t)
	var played []string
	play := func(name string, err error) func(context.Context) error {
		return func(context.Context) error {
			played = append(played, name)
			return err
		}
	}
	d.perform(t.Context(), []step{
		{"one", play("one", nil), true},
		{"two", play("two", errors.New("a node is missing")), false},
		{"three", play("three", errors.New("no room")), true},
		{"four", play("four", nil), true},
	})
	if diff := cmp.Diff([]string{"one", "two", "three"}, played); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"two: a node is missing", "three: no room"}, failures(d)); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(out.String(), "FAILED: a node is missing") {
		t.Errorf("nothing was said: %s", out)
	}
}

func TestAnInterruptEndsTheStoryAndIsCalledOne(t *testing.T) {
	d, _ := testDemo(t)
	ctx, cancel := context.WithCancel(t.Context())
	d.perform(ctx, []step{
		{"one", func(ctx context.Context) error { cancel(); return ctx.Err() }, false},
		{"two", func(context.Context) error { t.Error("it went on"); return nil }, false},
	})
	if diff := cmp.Diff([]string{"one: interrupted"}, failures(d)); diff != "" {
		t.Error(diff)
	}
}

func TestAPanicInTheBackgroundEndsTheStory(t *testing.T) {
	d, _ := testDemo(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	d.fail = cancel
	d.perform(ctx, []step{
		{"one", func(ctx context.Context) error {
			d.inBackground("count", func(context.Context) { panic("no fingers") })
			<-ctx.Done()
			return ctx.Err()
		}, false},
		{"two", func(context.Context) error { t.Error("it went on"); return nil }, false},
	})
	if diff := cmp.Diff([]string{"one: count: panic: no fingers"}, failures(d)); diff != "" {
		t.Error(diff)
	}
}

func TestARunThatWasCutShortStillHasItsReport(t *testing.T) {
	d, out := testDemo(t)
	if err := d.prepareOut(); err != nil {
		t.Fatal(err)
	}
	d.perform(t.Context(), []step{{"bring up a machine room", func(context.Context) error { return errors.New("no root") }, true}})
	d.stopBackground()
	d.finish()
	if err := d.writeReport(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"summary.json", "report.html", "run.json"} {
		if text, err := os.ReadFile(filepath.Join(d.Out, f)); err != nil || !strings.Contains(string(text), "no root") {
			t.Errorf("%s does not say why (%v)", f, err)
		}
	}
	for _, want := range []string{"verdict: FAIL", "not measured", "bring up a machine room\n  no root"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, out)
		}
	}
}

func TestWithoutTheGuestsProgramNothingBegins(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	out := t.TempDir()
	err := Run(t.Context(), Options{Out: out, GuestBinary: filepath.Join(out, "none"), Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v: want a sentence that says how to build it", err)
	}
}

func TestAPollCountsAsPartOfAFaultIfItOverlapsOne(t *testing.T) {
	d, _ := testDemo(t)
	d.run.Windows = []report.Window{{From: 10 * time.Second, To: 20 * time.Second}}
	for _, tt := range []struct {
		from, to time.Duration
		want     bool
	}{{9, 9, false}, {9, 10, true}, {15, 16, true}, {20, 21, true}, {21, 21, false}, {30, 31, false}} {
		if got := d.inFault(tt.from*time.Second, tt.to*time.Second); got != tt.want {
			t.Errorf("%d to %d s: got %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
	d.window = &report.Window{From: 25 * time.Second}
	if !d.inFault(30*time.Second, 31*time.Second) {
		t.Error("a fault that is not over counts for nothing")
	}
}

func TestAGuestsRowIsClosedWhereTheNextSpanBegins(t *testing.T) {
	d, _ := testDemo(t)
	d.place(d.moving, "n1", time.Second)
	d.place(d.moving, "n2", 3*time.Second)
	d.place(d.moving, "", 5*time.Second)
	want := []report.Lane{{Name: "guest 100", Spans: []report.Span{
		{From: time.Second, To: 3 * time.Second, Kind: "n1", Label: "n1"}, {From: 3 * time.Second, To: 5 * time.Second, Kind: "n2", Label: "n2"},
	}}}
	if diff := cmp.Diff(want, d.run.Timeline); diff != "" {
		t.Error(diff)
	}
}

func TestEchoLinesBecomeASeriesInAnyOrder(t *testing.T) {
	e := &echo{}
	for _, l := range []string{
		`{"kind":"start","probe":"echo"}`,
		`{"kind":"echo","seq":1,"sent_ns":20,"recv_ns":25}`,
		`{"kind":"echo","seq":0,"sent_ns":10,"recv_ns":31}`,
		`{"kind":"lost","seq":3,"sent_ns":40}`,
		`{"kind":"lost","seq":1,"sent_ns":20}`,
		`{"kind":"echo","seq":3,"sent_ns":40,"recv_ns":9000}`,
		`{"kind":"summary"}`, `{"kind":"ec`,
	} {
		e.line([]byte(l))
	}
	want := []probe.Sample{{Seq: 0, Sent: 10, Recv: 31}, {Seq: 1, Sent: 20, Recv: 25}, {Seq: 3, Sent: 40, Recv: 9000}}
	if diff := cmp.Diff(want, e.series()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[1:2], e.between(15, 30)); diff != "" {
		t.Error(diff)
	}
}

func TestAProcessIsReadWhateverItsName(t *testing.T) {
	text := "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 1234 1000000 3 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n"
	got, err := parseStat([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := process{name: "a (b) c", ticks: 12, rss: 3 * int64(os.Getpagesize())}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1 2", ")("} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a process", bad)
		}
	}
}

func TestTheFirstLookAtANodeHasNothingToCompareWith(t *testing.T) {
	m := &meter{}
	n := lab.NodeStatus{PIDs: []int{os.Getpid()}}
	if _, ok := m.measure(time.Second, n); ok {
		t.Error("it gave a sample")
	}
	s, ok := m.measure(2*time.Second, n)
	if !ok || s.SauhBytes == 0 || s.GuestBytes != 0 || s.SauhCPU < 0 || s.SauhCPU > 64 {
		t.Errorf("got %+v, %v", s, ok)
	}
}

func TestAnotherIdentityDiffersInOneDigit(t *testing.T) {
	for id, want := range map[string]string{"": "", "ab-c0": "ab-c1", "ab-c5": "ab-c0"} {
		if got := otherID(id); got != want {
			t.Errorf("otherID(%q) = %q, want %q", id, got, want)
		}
	}
}

func TestWaitingEndsWithTheLastReason(t *testing.T) {
	err := await(t.Context(), "a miracle", time.Millisecond, time.Millisecond, func(context.Context) error { return errors.New("none came") })
	if err == nil || err.Error() != "a miracle: not within 1ms: none came" {
		t.Errorf("got %v", err)
	}
	if err := await(t.Context(), "nothing", 0, time.Second, func(context.Context) error { return nil }); err != nil {
		t.Errorf("got %v from a check that is content", err)
	}
}
