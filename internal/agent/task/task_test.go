package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
)

func openTasks(t *testing.T, dir string) *List {
	t.Helper()
	ts, err := Open(t.Context(), dir, func() string { return "n1" }, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	t.Cleanup(func() { ts.Stop(errors.New("the test ends")) })
	return ts
}

func start(t *testing.T, ts *List, typ, id string, f func(context.Context, *Task) error) string {
	t.Helper()
	upid, err := ts.Start(typ, id, f)
	must(t, err)
	return upid
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lines are a task's log without the times.
func lines(t *testing.T, ts *List, upid string) []string {
	t.Helper()
	log, total, err := ts.TaskLog(t.Context(), upid, 0, 0)
	must(t, err)
	if total != len(log) {
		t.Errorf("a log of %d lines is said to have %d", len(log), total)
	}
	stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} `)
	out := make([]string, len(log))
	for i, l := range log {
		if l.N != i+1 {
			t.Errorf("line %d has the number %d", i+1, l.N)
		}
		out[i] = stamp.ReplaceAllString(l.T, "")
	}
	return out
}

func (ts *List) ended(t *testing.T, upid string) model.Task {
	t.Helper()
	tk, err := ts.find(upid)
	must(t, err)
	select {
	case <-tk.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the task does not end")
	}
	rec, err := ts.Task(t.Context(), upid)
	must(t, err)
	return rec
}

func TestATaskHasALogAnExitStatusAndAProxmoxVEName(t *testing.T) {
	ts := openTasks(t, t.TempDir())
	ok := start(t, ts, "qmstart", "100", func(_ context.Context, tk *Task) error { tk.Logf("one of %d", 2); return nil })
	bad := start(t, ts, "qmstop", "101", func(context.Context, *Task) error { return errors.New("it burns") })
	if !regexp.MustCompile(`^UPID:n1:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:qmstart:100:root@pam:$`).MatchString(ok) {
		t.Errorf("the id is %s", ok)
	}
	got, want := ts.ended(t, ok), model.Task{UPID: ok, Node: "n1", Type: "qmstart", ID: "100", User: "root@pam", ExitStatus: "OK"}
	want.Start, want.End = got.Start, got.End
	if diff := cmp.Diff(want, got); diff != "" || got.End < got.Start || got.Start == 0 {
		t.Errorf("%d to %d: %s", got.Start, got.End, diff)
	}
	if diff := cmp.Diff([]string{"qmstart 100 on node n1", "one of 2", "TASK OK"}, lines(t, ts, ok)); diff != "" {
		t.Error(diff)
	}
	if rec := ts.ended(t, bad); rec.ExitStatus != "it burns" {
		t.Errorf("the exit status is %q", rec.ExitStatus)
	}
	if diff := cmp.Diff([]string{"qmstop 101 on node n1", "TASK ERROR: it burns"}, lines(t, ts, bad)); diff != "" {
		t.Error(diff)
	}
	if err := ts.Wait(t.Context(), bad); err == nil || err.Error() != "it burns" {
		t.Errorf("who waits gets %v", err)
	}
}

func TestALogIsReadInPieces(t *testing.T) {
	ts := openTasks(t, t.TempDir())
	upid := start(t, ts, "qmstart", "100", func(_ context.Context, tk *Task) error {
		for i := range 5 {
			tk.Logf("line %d", i)
		}
		return nil
	})
	ts.ended(t, upid)
	for _, c := range []struct{ start, limit, first, n int }{{0, 2, 1, 2}, {5, 10, 6, 2}, {7, 10, 0, 0}, {-3, 1, 1, 1}, {6, 0, 7, 1}} {
		log, total, err := ts.TaskLog(t.Context(), upid, c.start, c.limit)
		must(t, err)
		var first int
		if len(log) > 0 {
			first = log[0].N
		}
		if total != 7 || len(log) != c.n || first != c.first {
			t.Errorf("from %d at most %d: %v of %d", c.start, c.limit, log, total)
		}
	}
}

func TestProgressIsShownWhileATaskRuns(t *testing.T) {
	ts := openTasks(t, t.TempDir())
	told, end := make(chan struct{}), make(chan struct{})
	upid := start(t, ts, "qmigrate", "100", func(_ context.Context, tk *Task) error {
		tk.Progress(model.MigrationProgress{Phase: "precopy", Round: 3})
		close(told)
		<-end
		return nil
	})
	<-told
	rec, err := ts.Task(t.Context(), upid)
	must(t, err)
	if diff := cmp.Diff(&model.MigrationProgress{Phase: "precopy", Round: 3}, rec.Progress); diff != "" || rec.End != 0 {
		t.Errorf("ended at %d: %s", rec.End, diff)
	}
	close(end)
	ts.ended(t, upid)
}

func TestTasksAreReadBackAfterARestart(t *testing.T) {
	dir := t.TempDir()
	ts := openTasks(t, dir)
	upid := start(t, ts, "qmstart", "100", func(_ context.Context, tk *Task) error { tk.Logf("a line"); return errors.New("no disk") })
	want, wantLog := ts.ended(t, upid), lines(t, ts, upid)
	again := openTasks(t, dir)
	got, err := again.ListTasks(t.Context())
	must(t, err)
	if diff := cmp.Diff([]model.Task{want}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wantLog, lines(t, again, upid)); diff != "" {
		t.Error(diff)
	}
}

func TestATaskThatARestartInterruptedSaysSo(t *testing.T) {
	dir := t.TempDir()
	ts := openTasks(t, dir)
	end := make(chan struct{})
	upid := start(t, ts, "qmstart", "100", func(context.Context, *Task) error { <-end; return nil })
	again := openTasks(t, dir) // the agent that comes after one that died
	got := again.ended(t, upid)
	if got.ExitStatus != "interrupted: the agent was restarted" || got.End == 0 {
		t.Errorf("the task of an agent that died is %+v", got)
	}
	if diff := cmp.Diff([]string{"qmstart 100 on node n1", "TASK ERROR: interrupted: the agent was restarted"}, lines(t, again, upid)); diff != "" {
		t.Error(diff)
	}
	close(end)
	ts.ended(t, upid)
}

func TestCancellingAnEndedTaskChangesNothing(t *testing.T) {
	dir := t.TempDir()
	ts := openTasks(t, dir)
	upid := start(t, ts, "qmstart", "100", func(context.Context, *Task) error { return nil })
	ts.ended(t, upid)
	want := lines(t, ts, upid)
	for name, ts := range map[string]*List{"the same agent": ts, "the next agent": openTasks(t, dir)} {
		if err := ts.CancelTask(t.Context(), upid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, lines(t, ts, upid)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestATaskFileThatCannotBeReadIsPassedOver(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/half.json", []byte(`{"upid":`), 0o600))
	list, err := openTasks(t, dir).ListTasks(t.Context())
	if err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}

func TestOnlyTheNewestTasksAreKept(t *testing.T) {
	dir := t.TempDir()
	for i := range kept {
		rec := storedTask{Task: model.Task{UPID: fmt.Sprintf("UPID:n1:%04d", i), Node: "n1", Start: int64(1000 + i), End: int64(1000 + i), ExitStatus: "OK"}}
		data, err := json.Marshal(rec)
		must(t, err)
		must(t, os.WriteFile(fmt.Sprintf("%s/UPID:n1:%04d.json", dir, i), data, 0o600))
	}
	ts := openTasks(t, dir)
	upid := start(t, ts, "qmstart", "100", func(context.Context, *Task) error { return nil })
	ts.ended(t, upid)
	list, err := ts.ListTasks(t.Context())
	must(t, err)
	if len(list) != kept || list[0].UPID != upid || list[1].UPID != fmt.Sprintf("UPID:n1:%04d", kept-1) {
		t.Errorf("%d tasks, %s and %s first", len(list), list[0].UPID, list[1].UPID)
	}
	if _, err := ts.Task(t.Context(), "UPID:n1:0000"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("the oldest task: %v", err)
	}
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != kept {
		t.Errorf("%d files are kept", len(files))
	}
}

func TestARunningTaskIsNeverTrimmed(t *testing.T) {
	ts := openTasks(t, t.TempDir())
	end := make(chan struct{})
	upid := start(t, ts, "qmigrate", "100", func(context.Context, *Task) error { <-end; return nil })
	ts.mu.Lock()
	for i := range kept + 1 {
		id := fmt.Sprintf("UPID:%d", i)
		ts.all[id] = &Task{rec: model.Task{UPID: id, Start: 1 << 40, End: 1 << 40}}
	}
	ts.mu.Unlock()
	ts.trim()
	tk, err := ts.find(upid)
	close(end)
	must(t, err)
	<-tk.done
}

func TestAPersonsWishAndTheAgentsEndAreDifferentCauses(t *testing.T) {
	errEnd := errors.New("the agent ends")
	ts := openTasks(t, t.TempDir())
	causes := make(chan error, 2)
	wait := func(ctx context.Context, _ *Task) error {
		<-ctx.Done()
		causes <- context.Cause(ctx)
		<-time.After(50 * time.Millisecond) // what a task puts in order before it ends
		return ctx.Err()
	}
	cancelled, abandoned := start(t, ts, "qmigrate", "100", wait), start(t, ts, "qmigrate", "101", wait)
	must(t, ts.CancelTask(t.Context(), cancelled))
	if err := <-causes; !errors.Is(err, context.Canceled) || errors.Is(err, errEnd) {
		t.Errorf("a person's wish has the cause %v", err)
	}
	if log := strings.Join(lines(t, ts, cancelled), "\n"); !strings.Contains(log, "asked to stop") {
		t.Errorf("the log does not say that the task was asked to stop:\n%s", log)
	}
	ts.Stop(errEnd)
	if err := <-causes; !errors.Is(err, errEnd) {
		t.Errorf("the agent's end has the cause %v", err)
	}
	if rec, err := ts.Task(t.Context(), abandoned); err != nil || rec.End == 0 {
		t.Errorf("the agent did not wait for its tasks: %+v %v", rec, err)
	}
}

func TestAnUnknownTaskIsRefused(t *testing.T) {
	ts := openTasks(t, t.TempDir())
	_, err := ts.Task(t.Context(), "UPID:x")
	if !errors.Is(err, model.ErrNotFound) || err.Error() != "no such task: UPID:x" {
		t.Errorf("answered with %v", err)
	}
	var log []api.LogLine
	log, _, err = ts.TaskLog(t.Context(), "UPID:x", 0, 0)
	if err == nil || log != nil || ts.CancelTask(t.Context(), "UPID:x") == nil || ts.Wait(t.Context(), "UPID:x") == nil {
		t.Error("an unknown task is answered")
	}
}

func TestAfterStopNothingIsStarted(t *testing.T) {
	ts := openTasks(t, t.TempDir())
	end := make(chan struct{})
	upid := start(t, ts, "qmstart", "100", func(ctx context.Context, _ *Task) error {
		<-ctx.Done()
		_, err := ts.Start("qmstart", "101", func(context.Context, *Task) error { t.Error("it was started"); return nil })
		close(end)
		return err
	})
	ts.Stop(errors.New("the agent ends"))
	<-end
	if rec := ts.ended(t, upid); rec.ExitStatus != "the agent of node n1 is stopping: try again in a moment" {
		t.Errorf("the answer is %q", rec.ExitStatus)
	}
	if err := ts.Wait(t.Context(), upid); !errors.Is(err, model.ErrUnavailable) {
		t.Error(err)
	}
	if list, err := ts.ListTasks(t.Context()); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
}
