// Package task is the list of a node's tasks: operations in the background, each with an id in Proxmox VE's form,
// a log that anyone may follow, and an end that is kept on disk.
//
// It knows nothing of guests: what a task does is the function it is given, and what a cancel means is that
// function's business. Invariants: who starts a task gets its id at once; after [List.Stop] none runs and none is started.
//
// Start reading with [List.Start].
package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// kept bounds how many ended tasks a node remembers; Proxmox VE keeps about as many in its active list.
const kept = 500

// List runs operations in the background, each with a log that anyone may
// follow. Ended tasks are kept on disk of the node that ran them.
type List struct {
	dir  string
	node func() string
	log  *slog.Logger
	ctx  context.Context //nolint:containedctx // tasks outlive the request that starts them
	// cancel ends all tasks; its cause tells the agent's end from a person's wish.
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	next    uint32           // guarded by mu
	stopped bool             // guarded by mu
	all     map[string]*Task // guarded by mu
}

// Task is one operation, as its function sees it. It is safe for concurrent use.
type Task struct {
	mu     sync.Mutex
	rec    model.Task // guarded by mu
	lines  []string   // guarded by mu
	err    error      // why it ended; guarded by mu
	cancel context.CancelFunc
	log    *slog.Logger
	done   chan struct{}
}

// Open reads the list that dir holds; tasks that an earlier agent did not end are shown as interrupted. node is the name to give new ones.
func Open(ctx context.Context, dir string, node func() string, log *slog.Logger) (*List, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("task directory: %w", err)
	}
	ts := &List{dir: dir, node: node, log: log, all: map[string]*Task{}}
	ts.ctx, ts.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if t := loadTask(f, log); t != nil {
			ts.all[t.rec.UPID] = t
		}
	}
	return ts, nil
}

type storedTask struct {
	model.Task
	Lines []string `json:"log"`
}

func loadTask(file string, log *slog.Logger) *Task {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var s storedTask
	if json.Unmarshal(data, &s) != nil {
		return nil
	}
	if s.End == 0 {
		s.End, s.ExitStatus = s.Start, "interrupted: the agent was restarted"
		s.Lines = append(s.Lines, "TASK ERROR: "+s.ExitStatus)
	}
	done := make(chan struct{})
	close(done)
	return &Task{rec: s.Task, lines: s.Lines, cancel: func() {}, log: log, done: done}
}

func (ts *List) file(upid string) string {
	return filepath.Join(ts.dir, url.PathEscape(upid)+".json")
}

// Stop ends all tasks with cause and waits for them. Afterwards Start refuses.
func (ts *List) Stop(cause error) {
	ts.mu.Lock()
	ts.stopped = true
	ts.mu.Unlock()
	ts.cancel(cause)
	ts.wg.Wait()
}

// Start runs f in the background and returns the task's id at once. f's context ends when somebody cancels the task, or with
// Stop, whose cause it then carries. Errors: model.ErrUnavailable after Stop; f does not run then.
func (ts *List) Start(typ, id string, f func(context.Context, *Task) error) (upid string, err error) {
	ctx, t, err := ts.register(typ, id)
	if err != nil {
		return "", err
	}
	t.Logf("%s %s on node %s", typ, id, ts.node())
	ts.save(t)
	go func() {
		defer ts.wg.Done()
		defer t.cancel()
		t.finish(f(ctx, t))
		ts.save(t)
		ts.trim()
		close(t.done)
	}()
	return t.UPID(), nil
}

// register makes a task that Stop waits for.
func (ts *List) register(typ, id string) (context.Context, *Task, error) {
	now, node := time.Now(), ts.node()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.stopped {
		return nil, nil, model.Errorf(model.ErrUnavailable, "the agent of node %s is stopping: try again in a moment", node)
	}
	ctx, cancel := context.WithCancel(ts.ctx)
	ts.next++
	t := &Task{
		rec: model.Task{
			UPID: model.UPID(node, os.Getpid(), ts.next, now, typ, id, "root@pam"), Node: node,
			Type: typ, ID: id, User: "root@pam", Start: now.Unix(),
		},
		cancel: cancel, log: ts.log.With("task", typ, "id", id), done: make(chan struct{}),
	}
	ts.all[t.rec.UPID] = t
	ts.wg.Add(1)
	return ctx, t, nil
}

// Logf adds a line to the log.
func (t *Task) Logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, time.Now().UTC().Format("2006-01-02 15:04:05.000 ")+line)
	t.log.Info(line)
}

// UPID is the task's id.
func (t *Task) UPID() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rec.UPID
}

// Progress says how far a migration is.
func (t *Task) Progress(p model.MigrationProgress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.Progress = &p
}

func (t *Task) finish(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	t.rec.End, t.rec.ExitStatus = time.Now().Unix(), "OK"
	last := "TASK OK"
	if err != nil {
		t.rec.ExitStatus = err.Error()
		last = "TASK ERROR: " + err.Error()
		t.log.Warn("task ended with an error", "err", err)
	}
	t.lines = append(t.lines, last)
}

func (ts *List) save(t *Task) {
	t.mu.Lock()
	s := storedTask{Task: t.rec, Lines: append([]string(nil), t.lines...)}
	t.mu.Unlock()
	data, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = sys.WriteFile(ts.file(s.UPID), append(data, '\n'))
	}
	if err != nil {
		ts.log.Warn("task record not written", "upid", s.UPID, "err", err)
	}
}

func (ts *List) trim() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.all) <= kept {
		return
	}
	list := ts.sortedLocked()
	for _, t := range list[kept:] {
		if t.End != 0 {
			delete(ts.all, t.UPID)
			if err := os.Remove(ts.file(t.UPID)); err != nil && !errors.Is(err, os.ErrNotExist) {
				ts.log.Warn("old task record not removed", "upid", t.UPID, "err", err)
			}
		}
	}
}

func (ts *List) sortedLocked() []model.Task {
	out := make([]model.Task, 0, len(ts.all))
	for _, t := range ts.all {
		t.mu.Lock()
		out = append(out, t.rec)
		t.mu.Unlock()
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Start != out[j].Start {
			return out[i].Start > out[j].Start
		}
		return out[i].UPID > out[j].UPID
	})
	return out
}

// Wait blocks until the task ended and returns what its function returned.
func (ts *List) Wait(ctx context.Context, upid string) error {
	t, err := ts.find(upid)
	if err != nil {
		return err
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (ts *List) find(upid string) (*Task, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[upid]
	if t == nil {
		return nil, model.Errorf(model.ErrNotFound, "no such task: %s", upid)
	}
	return t, nil
}

// ListTasks implements api.Tasks, newest first.
func (ts *List) ListTasks(context.Context) ([]model.Task, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.sortedLocked(), nil
}

// Task implements api.Tasks.
func (ts *List) Task(_ context.Context, upid string) (model.Task, error) {
	t, err := ts.find(upid)
	if err != nil {
		return model.Task{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rec, nil
}

// TaskLog implements api.Tasks; limit 0 means all.
func (ts *List) TaskLog(_ context.Context, upid string, start, limit int) ([]api.LogLine, int, error) {
	t, err := ts.find(upid)
	if err != nil {
		return nil, 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []api.LogLine
	for i := max(start, 0); i < len(t.lines) && (limit <= 0 || len(out) < limit); i++ {
		out = append(out, api.LogLine{N: i + 1, T: strings.TrimRight(t.lines[i], "\n")})
	}
	return out, len(t.lines), nil
}

// CancelTask implements api.Tasks: it asks the task to stop; what that means is the task's business. An ended one is left as it is.
func (ts *List) CancelTask(_ context.Context, upid string) error {
	t, err := ts.find(upid)
	if err != nil {
		return err
	}
	select {
	case <-t.done:
		return nil
	default:
	}
	t.Logf("asked to stop")
	t.cancel()
	return nil
}
