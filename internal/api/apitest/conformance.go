package apitest

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"testing"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
)

// World is a backend and what is known to be in it.
type World struct {
	Backend api.Backend
	Own     model.VMID // a guest of this node that has a configuration and can be started, whether or not it runs then
	Other   model.VMID // a guest of a node that does not answer
	Free    model.VMID // no guest
	Storage string     // a storage that this node may use
	Member  string     // another member
	// Settle returns when what was written can be read; nil if it can at once.
	Settle func()
}

// Run tries the sentences of the contract in api/backend.go on a backend. make returns a new one for each test.
func Run(t *testing.T, make func(t *testing.T) World) {
	for name, test := range map[string]func(*testing.T, World){
		"guests are listed, those of a node that does not answer as unknown": testLists,
		"owner says whose a guest is":                                        testOwner,
		"what is no guest is not found":                                      testNoGuest,
		"a configuration has values, keys in order and a digest":             testConfig,
		"a digest that does not fit changes nothing":                         testDigest,
		"what begins a task returns its UPID":                                testTask,
		"a log is numbered and read in pieces":                               testLog,
		"an unknown task is not found":                                       testNoTask,
		"an unknown storage is not found":                                    testNoStorage,
		"a node that is no member cannot be reached":                         testPeers,
		"a guest is protected once, changed, and protected no longer":        testResources,
		"what is no HA resource is not found":                                testNoResource,
		"a rule is made once, changed under its digest, and removed":         testRules,
		"what is asked of HA names nodes that are there":                     testControl,
		"a file of fencing methods is replaced under its digest":             testFencing,
		"options are changed under their digest":                             testOptions,
		"a status has every member and every resource":                       testStatus,
	} {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
}

func kindIs(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) || err.Error() == "" {
		t.Errorf("%s: %v is not of the kind %q", what, err, kind)
	}
}

func noError(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func testLists(t *testing.T, w World) {
	all, err := w.Backend.Guests.List(t.Context())
	noError(t, "List", err)
	local, err := w.Backend.Guests.ListLocal(t.Context())
	noError(t, "ListLocal", err)
	has := func(list []model.Guest, id model.VMID) int {
		return slices.IndexFunc(list, func(g model.Guest) bool { return g.VMID == id })
	}
	if has(all, w.Own) < 0 || has(local, w.Own) < 0 || has(local, w.Other) >= 0 {
		t.Errorf("all: %v, local: %v", all, local)
	}
	if i := has(all, w.Other); i < 0 || all[i].Status != "unknown" {
		t.Errorf("all: %v", all)
	}
	next, err := w.Backend.Guests.NextID(t.Context())
	noError(t, "NextID", err)
	if next < model.MinVMID || has(all, next) >= 0 {
		t.Errorf("the next id is %s", next)
	}
}

func testOwner(t *testing.T, w World) {
	st, err := w.Backend.Cluster.Status(t.Context())
	noError(t, "Status", err)
	own, err := w.Backend.Guests.Owner(t.Context(), w.Own)
	noError(t, "Owner", err)
	other, err := w.Backend.Guests.Owner(t.Context(), w.Other)
	noError(t, "Owner", err)
	if own != st.Local || own != w.Backend.Peers.LocalNode() || other != w.Member {
		t.Errorf("on %s: %s and %s", st.Local, own, other)
	}
}

func testNoGuest(t *testing.T, w World) {
	g := w.Backend.Guests
	_, err := g.Owner(t.Context(), w.Free)
	kindIs(t, "Owner", err, model.ErrNotFound)
	_, err = g.Get(t.Context(), w.Free)
	kindIs(t, "Get", err, model.ErrNotFound)
	_, err = g.Config(t.Context(), w.Free)
	kindIs(t, "Config", err, model.ErrNotFound)
	kindIs(t, "SetConfig", g.SetConfig(t.Context(), w.Free, map[string]string{"cores": "2"}, nil, ""), model.ErrNotFound)
	for what, f := range map[string]func(context.Context, model.VMID) (string, error){"Start": g.Start, "Stop": g.Stop, "Destroy": g.Destroy} {
		upid, err := f(t.Context(), w.Free)
		kindIs(t, what, err, model.ErrNotFound)
		if upid != "" {
			t.Errorf("%s of no guest began %s", what, upid)
		}
	}
}

func testConfig(t *testing.T, w World) {
	c, err := w.Backend.Guests.Config(t.Context(), w.Own)
	noError(t, "Config", err)
	if len(c.Keys) == 0 || len(c.Keys) != len(c.Values) || c.Node != w.Backend.Peers.LocalNode() || !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(c.Digest) {
		t.Errorf("%+v", c)
	}
	for _, k := range c.Keys {
		if _, ok := c.Values[k]; !ok {
			t.Errorf("%s has no value", k)
		}
	}
}

func testDigest(t *testing.T, w World) {
	c, err := w.Backend.Guests.Config(t.Context(), w.Own)
	noError(t, "Config", err)
	set := map[string]string{"cores": "2"}
	kindIs(t, "SetConfig", w.Backend.Guests.SetConfig(t.Context(), w.Own, set, nil, "0123456789012345678901234567890123456789"), model.ErrConflict)
	noError(t, "SetConfig with the digest", w.Backend.Guests.SetConfig(t.Context(), w.Own, set, nil, c.Digest))
	noError(t, "SetConfig without one", w.Backend.Guests.SetConfig(t.Context(), w.Own, set, nil, ""))
}

// began starts the guest's start, whatever becomes of it.
func began(t *testing.T, w World) string {
	t.Helper()
	upid, err := w.Backend.Guests.Start(t.Context(), w.Own)
	noError(t, "Start", err)
	return upid
}

func testTask(t *testing.T, w World) {
	upid := began(t, w)
	task, err := w.Backend.Tasks.Task(t.Context(), upid)
	noError(t, "Task", err)
	if task.UPID != upid || task.Type != "qmstart" || task.ID != w.Own.String() || task.Node != w.Backend.Peers.LocalNode() || task.Start == 0 {
		t.Errorf("%+v", task)
	}
	list, err := w.Backend.Tasks.ListTasks(t.Context())
	noError(t, "ListTasks", err)
	if !slices.ContainsFunc(list, func(x model.Task) bool { return x.UPID == upid }) {
		t.Errorf("%s is not in %v", upid, list)
	}
}

func testLog(t *testing.T, w World) {
	upid := began(t, w)
	all, total, err := w.Backend.Tasks.TaskLog(t.Context(), upid, 0, 0)
	noError(t, "TaskLog", err)
	if total < 1 || len(all) != total || all[0].N != 1 || all[0].T == "" {
		t.Errorf("%d lines: %v", total, all)
	}
	first, _, err := w.Backend.Tasks.TaskLog(t.Context(), upid, 0, 1)
	noError(t, "TaskLog", err)
	if len(first) != 1 || first[0] != all[0] {
		t.Errorf("the first line is %v", first)
	}
	if rest, _, err := w.Backend.Tasks.TaskLog(t.Context(), upid, 10000, 0); err != nil || len(rest) > 0 {
		t.Errorf("behind the end: %v, %v", rest, err)
	}
}

func testNoTask(t *testing.T, w World) {
	_, err := w.Backend.Tasks.Task(t.Context(), "UPID:none")
	kindIs(t, "Task", err, model.ErrNotFound)
	_, _, err = w.Backend.Tasks.TaskLog(t.Context(), "UPID:none", 0, 0)
	kindIs(t, "TaskLog", err, model.ErrNotFound)
	kindIs(t, "CancelTask", w.Backend.Tasks.CancelTask(t.Context(), "UPID:none"), model.ErrNotFound)
}

func testNoStorage(t *testing.T, w World) {
	_, err := w.Backend.Storages.Content(t.Context(), "no-such")
	kindIs(t, "Content", err, model.ErrNotFound)
	_, err = w.Backend.Storages.Content(t.Context(), w.Storage)
	noError(t, "Content", err)
	list, err := w.Backend.Storages.ListStorages(t.Context())
	noError(t, "ListStorages", err)
	if !slices.ContainsFunc(list, func(s api.StorageInfo) bool { return s.Storage == w.Storage && s.Active && s.Reason == "" }) {
		t.Errorf("%s is not active in %v", w.Storage, list)
	}
}

func testPeers(t *testing.T, w World) {
	_, err := w.Backend.Peers.RoundTripper("stranger")
	kindIs(t, "RoundTripper", err, model.ErrNotFound)
	if rt, err := w.Backend.Peers.RoundTripper(w.Member); err != nil || rt == nil {
		t.Errorf("a member: %v", err)
	}
	nodes, err := w.Backend.Cluster.Nodes(t.Context())
	noError(t, "Nodes", err)
	if !slices.ContainsFunc(nodes, func(n model.Node) bool { return n.Name == w.Member }) {
		t.Errorf("%s is not in %v", w.Member, nodes)
	}
}
