// Package apitest is an agent that exists only in memory, for tests of whatever speaks to the API: the server
// itself, the client, the CLI. [Run] is the suite that the fake and the real agent have to pass.
//
// It is no simulation: it keeps lists, notes each call, and fails where it is told to. Invariant: nothing changes by
// itself, so that tests can compare whole answers. Start reading with [New].
package apitest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

// Start is when everything in the fake cluster began, Unix seconds: 2026-01-02 03:04:05 UTC.
const Start = 1767323045

// Fake is a node of a cluster. Set the exported fields before it is used, or inside Change; the methods of its roles change them.
type Fake struct {
	Cluster   api.ClusterStatus
	Info      api.NodeInfo
	Guests    []model.Guest
	Configs   map[model.VMID]api.GuestConfig
	Tasks     []model.Task
	Logs      map[string][]string
	Storages  []api.StorageInfo
	Volumes   []storage.Volume
	Resources []api.HAResource
	HA        api.HAStatus
	Alarms    []api.HAAlarm // of this node
	Rules     api.Sections
	Groups    api.Sections
	Explained map[string]api.HAExplanation // by sid
	Plan      api.HAPlan
	Moved     api.HAMove // With and Blocking of the next answers
	FenceText string
	Methods   []api.HAFenceMethod
	Options   map[string]string
	// Fail gives the error of a method by its name, such as "Guests.Start".
	Fail map[string]error
	// TaskFails gives the exit status of the tasks of a type, such as "qmstart".
	TaskFails map[string]string
	// TaskSays gives a further line of the logs of the tasks of a type.
	TaskSays map[string]string
	// Progress is what a migration reports, one a question; then it ends. With Endless it repeats the last until cancelled.
	Progress []model.MigrationProgress
	Endless  bool
	// Transports reach the other nodes.
	Transports map[string]http.RoundTripper
	// Console answers what is typed into a guest; nil echoes.
	Console func(port net.Conn)
	// PeerHandler is Peers.Handler.
	PeerHandler http.Handler

	mu    sync.Mutex
	calls []string
	wg    sync.WaitGroup
}

// New is node n1 of the cluster demo of three nodes, with two guests, one of them protected, and one storage.
func New() *Fake {
	node := func(id int, name string) api.NodeStatus {
		return api.NodeStatus{
			Node: model.Node{
				Name: name, ID: id, Mgmt: fmt.Sprintf("10.10.1.%d", id), Cluster: fmt.Sprintf("10.10.2.%d", id), Votes: 1, Joined: Start,
			},
			Online: true, OnlineSince: Start + int64(id), Epoch: 1,
		}
	}
	return &Fake{
		Cluster: api.ClusterStatus{
			Name: "demo", UUID: "5a0b", Local: "n1", Quorate: true, ExpectedVotes: 3, TotalVotes: 3, Quorum: 2, Leader: "n2", Manager: "n1",
			ConfigVersion: 7, Nodes: []api.NodeStatus{node(1, "n1"), node(2, "n2"), node(3, "n3")},
		},
		Info: api.NodeInfo{
			Node: "n1", UptimeSec: 3723, CPU: 0.25, CPUs: 2, MemoryTotal: 4 << 30, MemoryUsed: 1 << 30, Version: "0.1.0", QEMU: "10.0.2", Accel: "tcg",
			AccelReason: "the test guest did not boot with KVM", AgentPID: 4711, ClusterMember: true,
			Guard: api.GuardStatus{Connected: true, Epoch: 1, LeaseMS: 9500, Watchdog: "/dev/watchdog", WatchdogSec: 5},
		},
		Guests: []model.Guest{
			{VMID: 100, Node: "n1", Name: "web", Status: "running", QMPStatus: "running", PID: 815, MemoryMiB: 512, CPUs: 2, Uptime: 61, HA: "started"},
			{VMID: 101, Node: "n1", Name: "db", Status: "stopped", MemoryMiB: 1024, CPUs: 1},
			{VMID: 102, Node: "n2", Name: "mail", Status: "unknown"},
		},
		Configs: map[model.VMID]api.GuestConfig{100: {
			Values: map[string]string{"name": "web", "memory": "512", "cores": "2", "onboot": "1", "virtio0": "nas:100/vm-100-disk-0.qcow2,size=1G"},
			Keys:   []string{"name", "memory", "cores", "onboot", "virtio0"}, Digest: "da39a3ee5e6b4b0d3255bfef95601890afd80709", Node: "n1",
		}, 102: {Values: map[string]string{"name": "mail"}, Keys: []string{"name"}, Digest: "00", Node: "n2"}},
		Logs: map[string][]string{},
		Storages: []api.StorageInfo{{
			Storage: "nas", Type: "dir", Path: "/mnt/nas", Content: "images", Shared: true, Active: true,
			Capacity: storage.Capacity{Total: 8 << 30, Used: 2 << 30, Available: 6 << 30},
		}},
		Volumes:   []storage.Volume{{ID: "nas:100/vm-100-disk-0.qcow2", VMID: 100, Format: storage.QCOW2, Size: 1 << 30, Used: 1 << 20}},
		Resources: []api.HAResource{{SID: "vm:100", State: "started", Comment: "the shop", Digest: digest, Values: map[string]string{"max_restart": "3"}}},
		HA:        haStatus(), Rules: haRules(), Groups: api.Sections{Digest: digest}, Explained: explained(), Plan: plan(),
		FenceText: "redfish: n2-bmc\n\tnode n2\n", Methods: haStatus().Nodes[1].Fencing, Options: map[string]string{"ha": "shutdown_policy=migrate"},
		Fail: map[string]error{}, TaskFails: map[string]string{}, TaskSays: map[string]string{}, Transports: map[string]http.RoundTripper{},
		Progress: []model.MigrationProgress{
			{Phase: "prepare"},
			{Phase: "copy", Round: 1, TransferredBytes: 64 << 20, RemainingBytes: 448 << 20, TotalBytes: 512 << 20, DirtyBytesPerSec: 10 << 20, ExpectedDowntimeMS: 300},
			{Phase: "copy", Round: 2, TransferredBytes: 520 << 20, RemainingBytes: 1 << 20, TotalBytes: 512 << 20, DirtyBytesPerSec: 10 << 20, ExpectedDowntimeMS: 12},
			{Phase: "done", Round: 2, TransferredBytes: 521 << 20, TotalBytes: 512 << 20, DowntimeMS: 11, TotalMS: 790},
		},
	}
}

// Backend are the fake's roles.
func (f *Fake) Backend() api.Backend {
	return api.Backend{
		Cluster: clusterRole{f}, Guests: guestsRole{f}, Tasks: tasksRole{f}, Storages: storagesRole{f}, Peers: peersRole{f},
		HA: haRole{f}, Alarms: alarmsRole{f}, Rules: rulesRole{f}, Services: controlRole{f}, Nodes: controlRole{f}, Fencing: fencingRole{f}, Options: optionsRole{f},
	}
}

// Calls are the changes that were asked for, in order.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

// Change runs fn while no request reads the fake.
func (f *Fake) Change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// read copies a part of the fake, with the error that was ordered for the method.
func read[T any](f *Fake, method string, part func() T) (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return part(), f.Fail[method]
}

// Wait returns when every console was closed.
func (f *Fake) Wait() { f.wg.Wait() }

// call notes a change and returns the error that was ordered for it.
func (f *Fake) call(method, format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.TrimSpace(method+" "+fmt.Sprintf(format, args...)))
	return f.Fail[method]
}

func (f *Fake) fail(method string) error {
	_, err := read(f, method, func() struct{} { return struct{}{} })
	return err
}

// status is the cluster's, with a list of nodes of its own. f.mu is held.
func (f *Fake) status() api.ClusterStatus {
	st := f.Cluster
	st.Nodes = slices.Clone(st.Nodes)
	return st
}

// task makes a task that has ended, or a running one.
func (f *Fake) task(typ string, id model.VMID, running bool) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := int64(len(f.Tasks))
	t := model.Task{
		UPID: model.UPID("n1", 4711, uint32(n), time.Unix(Start+n, 0), typ, id.String(), "root@pam"), Node: "n1", Type: typ, ID: id.String(),
		User: "root@pam", Start: Start + n,
	}
	f.Logs[t.UPID] = []string{"this is the log of " + typ}
	if line := f.TaskSays[typ]; line != "" {
		f.Logs[t.UPID] = append(f.Logs[t.UPID], line)
	}
	if !running {
		f.end(&t)
	}
	f.Tasks = append(f.Tasks, t)
	return t.UPID
}

func (f *Fake) end(t *model.Task) {
	t.End, t.ExitStatus = t.Start+1, "OK"
	if msg := f.TaskFails[t.Type]; msg != "" {
		t.ExitStatus = msg
		f.Logs[t.UPID] = append(f.Logs[t.UPID], "TASK ERROR: "+msg)
		return
	}
	f.Logs[t.UPID] = append(f.Logs[t.UPID], "TASK OK")
}

type clusterRole struct{ f *Fake }

func (r clusterRole) Version() model.Version {
	return model.Version{Version: "0.1.0", Commit: "0123456789abcdef0123", Go: "go1.26"}
}

func (r clusterRole) Status(context.Context) (api.ClusterStatus, error) {
	return read(r.f, "Cluster.Status", r.f.status)
}

func (r clusterRole) Create(_ context.Context, q api.CreateClusterRequest) error {
	return r.f.call("Cluster.Create", "%s %s %s %s %s", q.Name, q.NodeName, q.Mgmt, q.Cluster, q.HAProfile)
}

func (r clusterRole) Key(_ context.Context, valid time.Duration) (api.JoinKey, error) {
	err := r.f.call("Cluster.Key", "%s", valid)
	return api.JoinKey{Key: "KEY", Fingerprint: "AB:CD", Addresses: []string{"10.10.1.1"}, Expires: Start + int64(valid/time.Second)}, err
}

func (r clusterRole) Join(_ context.Context, key, name string) error {
	return r.f.call("Cluster.Join", "%s %s", key, name)
}

func (r clusterRole) Leave(_ context.Context, destroy string) error {
	return r.f.call("Cluster.Leave", "%s", destroy)
}

func (r clusterRole) Remove(_ context.Context, node string) error {
	return r.f.call("Cluster.Remove", "%s", node)
}

func (r clusterRole) Nodes(context.Context) ([]model.Node, error) {
	return read(r.f, "Cluster.Nodes", func() (out []model.Node) {
		for _, n := range r.f.Cluster.Nodes {
			out = append(out, n.Node)
		}
		return out
	})
}

func (r clusterRole) Info(context.Context) (api.NodeInfo, error) {
	return read(r.f, "Cluster.Info", func() api.NodeInfo { return r.f.Info })
}

type guestsRole struct{ f *Fake }

func (r guestsRole) List(context.Context) ([]model.Guest, error) {
	return read(r.f, "Guests.List", func() []model.Guest { return slices.Clone(r.f.Guests) })
}

func (r guestsRole) ListLocal(ctx context.Context) ([]model.Guest, error) {
	all, err := r.List(ctx)
	local := peersRole(r).LocalNode()
	var out []model.Guest
	for _, g := range all {
		if g.Node == local {
			out = append(out, g)
		}
	}
	return out, err
}

// exists refuses what is no guest.
func (f *Fake) exists(id model.VMID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.Guests, func(g model.Guest) bool { return g.VMID == id }) {
		return model.Errorf(model.ErrNotFound, "guest %d does not exist", id)
	}
	return nil
}

func (r guestsRole) Owner(ctx context.Context, id model.VMID) (string, error) {
	g, err := r.Get(ctx, id)
	return g.Node, err
}

func (r guestsRole) NextID(context.Context) (model.VMID, error) {
	return 103, r.f.fail("Guests.NextID")
}

func (r guestsRole) Get(ctx context.Context, id model.VMID) (model.Guest, error) {
	all, err := r.List(ctx)
	for _, g := range all {
		if g.VMID == id {
			return g, err
		}
	}
	return model.Guest{}, model.Errorf(model.ErrNotFound, "guest %d does not exist", id)
}

func (r guestsRole) Config(_ context.Context, id model.VMID) (api.GuestConfig, error) {
	if err := r.f.exists(id); err != nil {
		return api.GuestConfig{}, err
	}
	return read(r.f, "Guests.Config", func() api.GuestConfig { return r.f.Configs[id] })
}

func (r guestsRole) SetConfig(_ context.Context, id model.VMID, set map[string]string, del []string, digest string) error {
	if err := r.f.exists(id); err != nil {
		return err
	}
	if c, err := r.Config(context.Background(), id); err == nil && digest != "" && c.Digest != "" && digest != c.Digest {
		return model.Errorf(model.ErrConflict, "detected modified configuration - file changed by other user? Try again.")
	}
	return r.f.call("Guests.SetConfig", "%d set %s delete %s digest %s", id, sorted(set), strings.Join(del, ","), digest)
}

func sorted(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func (r guestsRole) Create(_ context.Context, q api.CreateGuestRequest) (string, error) {
	err := r.f.call("Guests.Create", "%d %s start %t", q.VMID, sorted(q.Params), q.Start)
	return r.f.task("qmcreate", q.VMID, false), err
}

func (r guestsRole) Destroy(_ context.Context, id model.VMID) (string, error) {
	if err := r.f.exists(id); err != nil {
		return "", err
	}
	err := r.f.call("Guests.Destroy", "%d", id)
	return r.f.task("qmdestroy", id, false), err
}

func (r guestsRole) Start(_ context.Context, id model.VMID) (string, error) {
	if err := r.f.exists(id); err != nil {
		return "", err
	}
	err := r.f.call("Guests.Start", "%d", id)
	return r.f.task("qmstart", id, false), err
}

func (r guestsRole) Shutdown(_ context.Context, id model.VMID, timeout time.Duration, force bool) (string, error) {
	if err := r.f.exists(id); err != nil {
		return "", err
	}
	err := r.f.call("Guests.Shutdown", "%d %s force %t", id, timeout, force)
	return r.f.task("qmshutdown", id, false), err
}

func (r guestsRole) Stop(_ context.Context, id model.VMID) (string, error) {
	if err := r.f.exists(id); err != nil {
		return "", err
	}
	err := r.f.call("Guests.Stop", "%d", id)
	return r.f.task("qmstop", id, false), err
}

func (r guestsRole) Migrate(_ context.Context, id model.VMID, target string, online bool) (string, error) {
	if err := r.f.exists(id); err != nil {
		return "", err
	}
	err := r.f.call("Guests.Migrate", "%d %s online %t", id, target, online)
	return r.f.task("qmigrate", id, true), err
}

func (r guestsRole) Console(context.Context, model.VMID) (io.ReadWriteCloser, error) {
	if err := r.f.fail("Guests.Console"); err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	r.f.wg.Go(func() {
		defer far.Close()
		if r.f.Console != nil {
			r.f.Console(far)
			return
		}
		_, _ = io.Copy(far, far)
	})
	return near, nil
}

type tasksRole struct{ f *Fake }

func (r tasksRole) ListTasks(context.Context) ([]model.Task, error) {
	return read(r.f, "Tasks.ListTasks", func() []model.Task { return slices.Clone(r.f.Tasks) })
}

// Task lets a migration advance by one report.
func (r tasksRole) Task(_ context.Context, upid string) (model.Task, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	for i := range r.f.Tasks {
		t := &r.f.Tasks[i]
		if t.UPID != upid {
			continue
		}
		if t.End == 0 && t.Type == "qmigrate" {
			r.advance(t)
		}
		return *t, nil
	}
	return model.Task{}, model.Errorf(model.ErrNotFound, "task %s does not exist", upid)
}

func (r tasksRole) advance(t *model.Task) {
	if r.f.Endless && len(r.f.Progress) == 1 {
		return
	}
	if len(r.f.Progress) > 0 {
		p := r.f.Progress[0]
		t.Progress, r.f.Progress = &p, r.f.Progress[1:]
		return
	}
	r.f.end(t)
}

func (r tasksRole) TaskLog(_ context.Context, upid string, start, limit int) ([]api.LogLine, int, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	all, ok := r.f.Logs[upid]
	if !ok {
		return nil, 0, model.Errorf(model.ErrNotFound, "task %s does not exist", upid)
	}
	var out []api.LogLine
	for i, l := range all {
		if i >= start && (limit == 0 || len(out) < limit) {
			out = append(out, api.LogLine{N: i + 1, T: l})
		}
	}
	return out, len(all), nil
}

func (r tasksRole) CancelTask(_ context.Context, upid string) error {
	if err := r.f.call("Tasks.CancelTask", "%s", upid); err != nil {
		return err
	}
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	for i := range r.f.Tasks {
		if t := &r.f.Tasks[i]; t.UPID == upid {
			t.End, t.ExitStatus = t.Start+1, "cancelled"
			return nil
		}
	}
	return model.Errorf(model.ErrNotFound, "task %s does not exist", upid)
}

type storagesRole struct{ f *Fake }

func (r storagesRole) ListStorages(context.Context) ([]api.StorageInfo, error) {
	return read(r.f, "Storages.ListStorages", func() []api.StorageInfo { return slices.Clone(r.f.Storages) })
}

func (r storagesRole) AddStorage(_ context.Context, name string, params map[string]string) error {
	return r.f.call("Storages.AddStorage", "%s %s", name, sorted(params))
}

func (r storagesRole) RemoveStorage(_ context.Context, name string) error {
	return r.f.call("Storages.RemoveStorage", "%s", name)
}

func (r storagesRole) Content(_ context.Context, name string) ([]storage.Volume, error) {
	if name != "nas" {
		return nil, model.Errorf(model.ErrNotFound, "storage %s does not exist", name)
	}
	return read(r.f, "Storages.Content", func() []storage.Volume { return slices.Clone(r.f.Volumes) })
}

func (r storagesRole) AllocateVolume(_ context.Context, name string, a storage.Allocation) (storage.Volume, error) {
	err := r.f.call("Storages.AllocateVolume", "%s vmid %d name %q format %q size %d", name, a.VMID, a.Name, a.Format, a.Size)
	return storage.Volume{ID: fmt.Sprintf("%s:%d/vm-%d-disk-1.raw", name, a.VMID, a.VMID)}, err
}

func (r storagesRole) DeleteVolume(_ context.Context, volid string) error {
	return r.f.call("Storages.DeleteVolume", "%s", volid)
}

type peersRole struct{ f *Fake }

func (r peersRole) LocalNode() string {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return r.f.Cluster.Local
}

func (r peersRole) RoundTripper(node string) (http.RoundTripper, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if rt, ok := r.f.Transports[node]; ok {
		return rt, nil
	}
	for _, n := range r.f.Cluster.Nodes {
		if n.Name == node {
			return deadTransport{}, nil
		}
	}
	return nil, model.Errorf(model.ErrNotFound, "node %s is no member", node)
}

func (r peersRole) Handler() http.Handler {
	if r.f.PeerHandler != nil {
		return r.f.PeerHandler
	}
	return http.NotFoundHandler()
}

// deadTransport is the way to a node that is off.
type deadTransport struct{}

func (deadTransport) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("connect to both addresses: %w", model.ErrUnavailable)
}
