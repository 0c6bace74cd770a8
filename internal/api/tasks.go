package api

import (
	"context"
	"errors"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

func (s *server) taskRoutes() []route {
	return []route{
		onNode("GET /nodes/{node}/tasks", s.taskList, count("start"), count("limit"), flag("errors"), vmidParam(), text("typefilter"),
			text("userfilter"), count("since"), count("until"), oneOf("source", "archive", "active", "all")),
		onNode("GET /nodes/{node}/tasks/{upid}/status", s.taskStatus),
		onNode("GET /nodes/{node}/tasks/{upid}/log", s.taskLog, count("start"), count("limit")),
		onNode("DELETE /nodes/{node}/tasks/{upid}", s.taskCancel),
		onNode("GET /sauh/nodes/{node}/tasks", func(ctx context.Context, _ *call) (any, error) {
			return orEmpty(s.b.Tasks.ListTasks(ctx))
		}),
		onNode("GET /sauh/nodes/{node}/tasks/{upid}", func(ctx context.Context, c *call) (any, error) { return s.task(ctx, c) }),
	}
}

// defaultLimit is how many tasks or log lines come at a time if nobody asks for more, as in Proxmox VE.
const defaultLimit = 50

// upidFields are the numbers that a UPID carries.
type upidFields struct {
	pid, pstart int64
}

func parseUPID(upid string) (upidFields, bool) {
	re := regexp.MustCompile(`^UPID:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?:([0-9A-Fa-f]{8}):([0-9A-Fa-f]{8,9}):[0-9A-Fa-f]{8}:[^:\s/]+:[^:\s/]*:[^:\s/]+:$`)
	m := re.FindStringSubmatch(upid)
	if m == nil {
		return upidFields{}, false
	}
	pid, _ := strconv.ParseInt(m[1], 16, 64) // the expression admits hexadecimal only
	pstart, _ := strconv.ParseInt(m[2], 16, 64)
	return upidFields{pid, pstart}, true
}

func taskRow(t model.Task) obj {
	f, _ := parseUPID(t.UPID)
	return obj{
		"upid": t.UPID, "node": t.Node, "type": t.Type, "id": t.ID, "user": t.User,
		"pid": f.pid, "pstart": f.pstart, "starttime": t.Start,
	}
}

// taskList prints the newest first.
func (s *server) taskList(ctx context.Context, c *call) (any, error) {
	tasks, err := s.b.Tasks.ListTasks(ctx)
	if err != nil {
		return nil, err
	}
	sort.SliceStable(tasks, func(i, j int) bool { return tasks[i].Start > tasks[j].Start })
	rows := []obj{}
	for _, t := range tasks {
		if !wantTask(t, c.args) {
			continue
		}
		o := taskRow(t)
		if t.End != 0 {
			o["endtime"], o["status"] = t.End, t.ExitStatus
		}
		rows = append(rows, o)
	}
	total := len(rows)
	rows = rows[min(c.args.int("start", 0), int64(total)):]
	if limit := c.args.int("limit", defaultLimit); limit > 0 && limit < int64(len(rows)) {
		rows = rows[:limit]
	}
	return withTotal{rows, total}, nil
}

func wantTask(t model.Task, a args) bool {
	source, running := a["source"], t.End == 0
	switch {
	case source == "active" && !running:
	case source != "active" && source != "all" && running: // archive is the default
	case a.bool("errors") && (running || t.ExitStatus == "OK"):
	case a.has("vmid") && t.ID != a["vmid"]:
	case a.has("typefilter") && t.Type != a["typefilter"]:
	case a.has("userfilter") && !strings.Contains(t.User, a["userfilter"]):
	case a.has("since") && t.Start < a.int("since", 0):
	case a.has("until") && t.Start > a.int("until", 0):
	default:
		return true
	}
	return false
}

// noTask is status 400, which clients take for "not known yet, ask again".
func noTask() error {
	e := invalidParam("upid", "no such task")
	e.kind = KindOf(model.ErrNotFound)
	return e
}

func checkUPID(c *call) (string, error) {
	upid := c.args["upid"]
	if _, ok := parseUPID(upid); !ok {
		return "", invalidParam("upid", "unable to parse worker upid '%s'", upid)
	}
	return upid, nil
}

func (s *server) task(ctx context.Context, c *call) (model.Task, error) {
	upid, err := checkUPID(c)
	if err != nil {
		return model.Task{}, err
	}
	t, err := s.b.Tasks.Task(ctx, upid)
	if errors.Is(err, model.ErrNotFound) {
		return t, noTask()
	}
	return t, err
}

func (s *server) taskStatus(ctx context.Context, c *call) (any, error) {
	t, err := s.task(ctx, c)
	if err != nil {
		return nil, err
	}
	o := taskRow(t)
	o["status"] = "running"
	if t.End != 0 {
		o["status"], o["exitstatus"] = "stopped", t.ExitStatus
	}
	return o, nil
}

// taskLog is never empty: a client gives up when it is, three times in a row.
func (s *server) taskLog(ctx context.Context, c *call) (any, error) {
	upid, err := checkUPID(c)
	if err != nil {
		return nil, err
	}
	start, limit := int(c.args.int("start", 0)), int(c.args.int("limit", defaultLimit))
	lines, total, err := s.b.Tasks.TaskLog(ctx, upid, start, limit)
	if errors.Is(err, model.ErrNotFound) {
		return nil, noTask()
	}
	if err != nil {
		return nil, err
	}
	if total == 0 {
		return withTotal{[]LogLine{{N: 1, T: "no content"}}, 1}, nil
	}
	if lines == nil {
		lines = []LogLine{}
	}
	return withTotal{lines, total}, nil
}

func (s *server) taskCancel(ctx context.Context, c *call) (any, error) {
	upid, err := checkUPID(c)
	if err != nil {
		return nil, err
	}
	err = s.b.Tasks.CancelTask(ctx, upid)
	if errors.Is(err, model.ErrNotFound) {
		return nil, noTask()
	}
	return nil, err
}
