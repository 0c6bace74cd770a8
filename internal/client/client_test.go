package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/api/apitest"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

// dial serves handler on a unix socket and returns a client of it.
func dial(t *testing.T, handler http.Handler) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: handler, ConnContext: api.LocalConnContext}}
	srv.Start()
	t.Cleanup(srv.Close)
	c := client.New(client.Options{Socket: socket})
	t.Cleanup(c.Close)
	return c
}

func agent(t *testing.T, f *apitest.Fake) *client.Client {
	return dial(t, api.NewServer(f.Backend(), api.Options{}))
}

func TestWhatTheBackendSaysArrivesUnchanged(t *testing.T) {
	f := apitest.New()
	c, ctx := agent(t, f), t.Context()
	check := func(what string, want any, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	st, err := c.ClusterStatus(ctx)
	check("ClusterStatus", f.Cluster, st, err)
	in, err := c.NodeInfo(ctx, "n1")
	check("NodeInfo", f.Info, in, err)
	gs, err := c.Guests(ctx)
	check("Guests", f.Guests, gs, err)
	ss, err := c.Storages(ctx, client.LocalNode)
	check("Storages", f.Storages, ss, err)
	vs, err := c.Content(ctx, client.LocalNode, "nas")
	check("Content", f.Volumes, vs, err)
	rs, err := c.HAResources(ctx)
	resources := slices.Clone(f.Resources)
	resources[0].MaxRestart, resources[0].MaxRelocate, resources[0].Failback, resources[0].Rebalance = 3, 1, true, true // in effect
	check("HAResources", resources, rs, err)
	ha, err := c.HAStatus(ctx)
	check("HAStatus", f.HA, ha, err)
	v, err := c.Version(ctx)
	check("Version", client.Version{Release: "9.1", Version: "9.1.4", Commit: "0123456789abcdef", Sauh: "0.1.0", Go: "go1.26"}, v, err)
	cfg, err := c.GuestConfig(ctx, "n1", 100)
	want := f.Configs[100]
	want.Keys = nil
	check("GuestConfig", want, cfg, err)
}

func TestChangesReachTheBackendUnchanged(t *testing.T) {
	f := apitest.New()
	c, ctx := agent(t, f), t.Context()
	upid := func(_ string, err error) error { return err }
	for i, err := range []error{
		c.CreateCluster(ctx, api.CreateClusterRequest{Name: "demo", Cluster: "10.10.2.1"}),
		c.SetGuestConfig(ctx, "n1", 100, map[string]string{"tags": "a;b", "description": "50% & more=less\n"}, []string{"net0"}, ""),
		c.HASet(ctx, "vm:100", api.Edit{Set: map[string]string{"comment": "a b"}, Delete: []string{"order"}}),
		c.HASet(ctx, "vm:100", api.Edit{Set: map[string]string{"state": "stopped"}}),
		c.AddStorage(ctx, "s", map[string]string{"type": "dir", "path": "/a b/ü"}),
		c.DeleteVolume(ctx, "n1", "nas:100/a b#?.raw"),
		upid(c.AllocateVolume(ctx, "n1", "nas", storage.Allocation{VMID: 100, Size: 1025})),
		upid(c.ShutdownGuest(ctx, "n1", 100, 90*time.Second, false)),
	} {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	want := []string{
		"Cluster.Create demo   10.10.2.1", "Guests.SetConfig 100 set description=50% & more=less\n tags=a;b delete net0 digest",
		"HA.HASet vm:100 comment=a b delete order", "HA.HASet vm:100 state=stopped delete", "Storages.AddStorage s path=/a b/ü type=dir",
		"Storages.DeleteVolume nas:100/a b#?.raw", `Storages.AllocateVolume nas vmid 100 name "" format "" size 2048`,
		"Guests.Shutdown 100 1m30s force false",
	}
	if diff := cmp.Diff(want, f.Calls()); diff != "" {
		t.Error(diff)
	}
}

func TestARefusalIsTheSentinelItStandsFor(t *testing.T) {
	for _, kind := range []error{model.ErrNoQuorum, model.ErrBusy, model.ErrConflict, model.ErrUnavailable, model.ErrExists, model.ErrInvalid, model.ErrNotFound} {
		f := apitest.New()
		f.Fail["Guests.Start"] = model.Errorf(kind, "a sentence")
		_, err := agent(t, f).StartGuest(t.Context(), "n1", 101)
		var e *client.Error
		if !errors.Is(err, kind) || !errors.As(err, &e) {
			t.Errorf("%v came as %v", kind, err)
		}
		if !errors.Is(kind, model.ErrNoQuorum) && err.Error() != "a sentence" {
			t.Errorf("%v says %q", kind, err)
		}
	}
}

func TestARefusalWithParametersNamesThemAll(t *testing.T) {
	_, err := agent(t, apitest.New()).CreateGuest(t.Context(), "n1", api.CreateGuestRequest{VMID: 200, Params: map[string]string{"cores": "x", "acpi": "y"}})
	if want := "acpi: type check ('boolean') failed - got 'y': write 1 or 0; cores: type check ('integer') failed - got 'x'"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestARefusalWithoutABodyIsThePhraseOfTheStatusLine(t *testing.T) {
	c := dial(t, api.NewServer(apitest.New().Backend(), api.Options{Local: func(*http.Request) bool { return false }}))
	_, err := c.ClusterStatus(t.Context())
	want := &client.Error{Status: 401, Message: "No ticket"}
	var got *client.Error
	if !errors.As(err, &got) || got.Status != want.Status || got.Message != want.Message {
		t.Errorf("got %#v, want %#v", err, want)
	}
}

func TestAnAgentThatIsNotThereIsNamedByItsSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	_, err := client.New(client.Options{Socket: socket}).ClusterStatus(t.Context())
	want := fmt.Sprintf("the Sauh agent does not answer on %s: is it running? Start it with 'systemctl start sauh-agent' or 'sauh agent' (no such file or directory)", socket)
	var lost *client.UnreachableError
	if !errors.As(err, &lost) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAnAgentThatDiesMeanwhileIsNotCalledAbsent(t *testing.T) {
	c := dial(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	if _, err := c.StartGuest(t.Context(), "n1", 100); err == nil || !strings.Contains(err.Error(), "closed the connection before it answered") {
		t.Errorf("got %v", err)
	}
}

func TestWaitTaskReportsEachLineAndEachProgressOnce(t *testing.T) {
	f := apitest.New()
	c := agent(t, f)
	want := append([]model.MigrationProgress(nil), f.Progress...)
	upid, err := c.MigrateGuest(t.Context(), "n1", 100, "n2", true)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	var progress []model.MigrationProgress
	err = c.WaitTask(t.Context(), upid, func(l string) { lines = append(lines, l) }, func(p model.MigrationProgress) { progress = append(progress, p) })
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"this is the log of qmigrate", "TASK OK"}, lines); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, progress); diff != "" {
		t.Error(diff)
	}
}

func TestWaitTaskReturnsTheTasksOwnError(t *testing.T) {
	f := apitest.New()
	f.TaskFails["qmstart"] = "image nas:100/vm-100-disk-0.qcow2 is locked by another process"
	c := agent(t, f)
	upid, err := c.StartGuest(t.Context(), "n1", 101)
	if err != nil {
		t.Fatal(err)
	}
	err = c.WaitTask(t.Context(), upid, nil, nil)
	var failed *client.TaskError
	if !errors.As(err, &failed) || failed.Task.UPID != upid || err.Error() != f.TaskFails["qmstart"] {
		t.Errorf("got %v", err)
	}
}

func TestWaitTaskEndsWithItsContextAndLeavesTheTaskAlone(t *testing.T) {
	f := apitest.New()
	f.Endless = true
	c := agent(t, f)
	upid, err := c.MigrateGuest(t.Context(), "n1", 100, "n2", true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = c.WaitTask(ctx, upid, func(string) { cancel() }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for _, call := range f.Calls() {
		if strings.HasPrefix(call, "Tasks.CancelTask") {
			t.Error("the task was cancelled")
		}
	}
}

func TestHAArrivesUnchangedInBothDirections(t *testing.T) {
	f := apitest.New()
	f.Options = map[string]string{"crs": "ha=static,ha-rebalance-on-start=1", "failures-to-tolerate": "1"}
	f.Moved = api.HAMove{With: []string{"vm:101"}, Blocking: []api.HABlocking{{SID: "vm:102", Cause: "node-affinity"}}}
	c, ctx := agent(t, f), t.Context()
	same := func(what string, want, got any, err error) {
		t.Helper()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", what, err, diff)
		}
	}
	e, err := c.HAExplain(ctx, "vm:100")
	same("HAExplain", f.Explained["vm:100"], e, err)
	p, err := c.HAWhatIf(ctx, []string{"n1", "n2"})
	want := f.Plan
	want.Lost = []string{"n1", "n2"}
	same("HAWhatIf", want, p, err)
	m, err := c.HAMove(ctx, "vm:100", "relocate", "n2")
	same("HAMove", api.HAMove{SID: "vm:100", Node: "n2", With: f.Moved.With, Blocking: f.Moved.Blocking}, m, err)
	r, err := c.Rules(ctx)
	rules := f.Rules
	rules.List[1].Values["resources"] = "vm:100,vm:101"
	same("Rules", rules, r, err)
	o, err := c.Options(ctx)
	same("Options", f.Options, o, err)
	ff, err := c.FenceFile(ctx)
	same("FenceFile", f.FenceText, ff.Text, err)
	ms, err := c.FenceMethods(ctx)
	same("FenceMethods", f.Methods, ms, err)
	rack := ""
	for i, err := range []error{
		c.NodeLabel(ctx, "n2", &rack, nil), c.NodeCommand(ctx, "n1", "reboot"), c.HAStop(ctx, "vm:100", 0),
		c.HADisarm(ctx, api.HADisarm{Mode: "ignore", Node: "n2", For: time.Minute}), c.HAArm(ctx, ""), c.SetFenceFile(ctx, "", ""),
		c.SetFenceSecret(ctx, "b", "a & b"), c.SetFenceSecret(ctx, "b", ""), c.Drain(ctx, true),
		c.SetFenceMethod(ctx, "ipmi", "b", api.Edit{Set: map[string]string{"user": "u"}}, "a & b"),
	} {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	calls := []string{
		"Control.Move vm:100 relocate n2", "Control.Label n2 rack '' site -", "Control.EndNode reboot true", "Control.StopService vm:100 0s",
		`Control.Disarm "n2" ignore for 1m0s`, `Control.Arm ""`, `Fencing.SetFenceFile ""`, `Fencing.SetFenceSecret b "a & b"`,
		`Fencing.SetFenceSecret b ""`, "Control.DrainNode reboot true", `Fencing.SetFenceMethod ipmi b user=u delete  secret "a & b"`,
	}
	same("calls", calls, f.Calls(), nil)
}

func TestWaitTaskOutlastsAShortSilence(t *testing.T) {
	f := apitest.New()
	inner := api.NewServer(f.Backend(), api.Options{})
	var asked atomic.Int32 // the client repeats what broke off, on another connection
	c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/tasks/") && asked.Add(1) <= 3 {
			panic(http.ErrAbortHandler)
		}
		inner.ServeHTTP(w, r)
	}))
	upid, err := c.StartGuest(t.Context(), "n1", 101)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitTask(t.Context(), upid, nil, nil); err != nil || asked.Load() <= 3 {
		t.Errorf("got %v after %d questions", err, asked.Load())
	}
}

func TestTheConsoleEndsInOrderWhenTheGuestEnds(t *testing.T) {
	f := apitest.New()
	f.Console = func(port net.Conn) { _, _ = io.WriteString(port, "login: ") }
	conn, err := agent(t, f).Console(t.Context(), "n1", 100)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if string(b) != "login: " || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	_ = conn.Close()
	f.Wait()
}

func TestOverHTTPSTheURLAndTheTransportAreUsed(t *testing.T) {
	f := apitest.New()
	srv := httptest.NewTLSServer(api.NewServer(f.Backend(), api.Options{Local: func(*http.Request) bool { return true }}))
	t.Cleanup(srv.Close)
	c := client.New(client.Options{URL: srv.URL + "/", TLS: srv.Client().Transport.(*http.Transport).TLSClientConfig})
	defer c.Close()
	if st, err := c.ClusterStatus(t.Context()); err != nil || st.Name != "demo" {
		t.Errorf("got %v, %v", st, err)
	}
}
