package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
)

// Tasks lists the tasks that a node remembers.
func (c *Client) Tasks(ctx context.Context, node string) (list []model.Task, err error) {
	return list, c.get(ctx, "/sauh/nodes/"+esc(node)+"/tasks", nil, &list)
}

// TaskNode is the node that a task id names. model.ErrInvalid if upid is none.
func TaskNode(upid string) (string, error) {
	parts := strings.Split(upid, ":")
	if len(parts) != 9 || parts[0] != "UPID" || parts[1] == "" {
		return "", model.Errorf(model.ErrInvalid, "%q is not a task id: 'sauh task list' shows them", upid)
	}
	return parts[1], nil
}

// Task returns a task and, of a migration, its progress.
func (c *Client) Task(ctx context.Context, upid string) (t model.Task, err error) {
	node, err := TaskNode(upid)
	if err != nil {
		return t, err
	}
	return t, c.get(ctx, "/sauh/nodes/"+esc(node)+"/tasks/"+esc(upid), nil, &t)
}

// TaskLog returns the lines of a task's log from line start, counted from 0, limit of them at most (0: all).
func (c *Client) TaskLog(ctx context.Context, upid string, start, limit int) (lines []api.LogLine, err error) {
	node, err := TaskNode(upid)
	if err != nil {
		return nil, err
	}
	v := url.Values{"start": {strconv.Itoa(start)}, "limit": {strconv.Itoa(limit)}}
	return lines, c.get(ctx, "/nodes/"+esc(node)+"/tasks/"+esc(upid)+"/log", v, &lines)
}

// CancelTask asks a running task to stop; it undoes what it can and then ends.
func (c *Client) CancelTask(ctx context.Context, upid string) error {
	node, err := TaskNode(upid)
	if err != nil {
		return err
	}
	return c.del(ctx, "/nodes/"+esc(node)+"/tasks/"+esc(upid), nil, nil)
}

// TaskError is a task that ended otherwise than well.
type TaskError struct {
	Task model.Task
}

func (e *TaskError) Error() string { return e.Task.ExitStatus }

// pollInterval is how often a running task is asked. A migration lasts about a second, and its progress is worth seeing.
const pollInterval = 200 * time.Millisecond

// patience is how long a task's node may be silent before the wait is given up: as long as a store's leader takes to be replaced, twice.
const patience = 5 * time.Second

// WaitTask waits until a task ended. It calls onLog with each line of the task's log and
// onProgress with each change of a migration's progress; both may be nil. It returns a *TaskError if the task did not end well,
// and the context's error when that is done; the task then goes on.
func (c *Client) WaitTask(ctx context.Context, upid string, onLog func(line string), onProgress func(model.MigrationProgress)) error {
	w := waiter{c: c, upid: upid, onLog: onLog, onProgress: onProgress}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	lastAnswer := time.Now()
	for {
		ended, err := w.poll(ctx)
		switch {
		case err == nil && ended:
			return w.result()
		case err == nil:
			lastAnswer = time.Now()
		case !transient(err) || time.Since(lastAnswer) > patience:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func transient(err error) bool {
	var lost *UnreachableError
	var refused *Error
	return errors.As(err, &lost) || errors.As(err, &refused) && refused.Status == api.StatusUnreachable
}

// waiter remembers what was reported already.
type waiter struct {
	c          *Client
	upid       string
	onLog      func(string)
	onProgress func(model.MigrationProgress)
	lines      int
	task       model.Task
	last       model.MigrationProgress
}

// poll asks for the state before the log, so that the log of an ended task is complete.
func (w *waiter) poll(ctx context.Context) (bool, error) {
	t, err := w.c.Task(ctx, w.upid)
	if err != nil {
		return false, err
	}
	w.task = t
	if w.onLog != nil {
		if err := w.log(ctx); err != nil {
			return false, err
		}
	}
	if p := t.Progress; w.onProgress != nil && p != nil && *p != w.last {
		w.last = *p
		w.onProgress(*p)
	}
	return t.End != 0, nil
}

func (w *waiter) log(ctx context.Context) error {
	lines, err := w.c.TaskLog(ctx, w.upid, w.lines, 0)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if l.N <= w.lines { // the line that stands for an empty log comes again and again
			continue
		}
		w.lines = l.N
		w.onLog(l.T)
	}
	return nil
}

func (w *waiter) result() error {
	if s := w.task.ExitStatus; s == "OK" || strings.HasPrefix(s, "WARNINGS") {
		return nil
	} else if s == "" {
		return fmt.Errorf("task %s ended without a result", w.upid)
	}
	return &TaskError{Task: w.task}
}
