package cli_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/api/apitest"
	"sauh.dev/sauh/internal/cli"
	"sauh.dev/sauh/internal/core/model"
)

var update = flag.Bool("update", false, "write the golden parts of the scripts")

// now is the time in all scripts, two hours after the fake cluster began.
func now() time.Time { return time.Unix(apitest.Start+7200, 0).UTC() }

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sauh": func() { os.Exit(sauh()) }})
}

// sauh is the program as cmd/sauh makes it, with daemons that only say how they were called.
func sauh() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := &cli.Main{
		Version: model.Version{Version: "0.1.0", Commit: "0123abcd", Go: "go1.26"},
		Stdin:   os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: now,
		Agent: func(_ context.Context, config string) error {
			if config == "broken" {
				return errors.New("agent configuration broken:\nline 1: no JSON")
			}
			fmt.Println("agent with", config)
			return nil
		},
		Guard: func(_ context.Context, o cli.GuardOptions) error {
			fmt.Println("guard with", o.Socket, o.Watchdog, o.CgroupRoot)
			return nil
		},
		Hold: func(socket string) error {
			fmt.Println("hold for", socket)
			return nil
		},
	}
	return m.Run(ctx, os.Args[1:])
}

func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *update, RequireExplicitExec: true,
		Setup: setup,
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"fake": fakeCommand},
	})
}

type fakeKey struct{}

// setup gives each script an agent of its own on a unix socket.
func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "sauh-cli") // the script's own directory may be too long for a socket's path
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "api.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	f := apitest.New()
	srv := &http.Server{Handler: api.NewServer(f.Backend(), api.Options{}), ConnContext: api.LocalConnContext}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	env.Values[fakeKey{}] = f
	env.Setenv("SAUH_SOCKET", socket)
	env.Setenv("TWO_LINES", "a\n\tnodes n3")
	env.Setenv("GORACE", "atexit_sleep_ms=0") // with the race detector each of the many commands would end a second late
	env.Defer(func() {
		_ = srv.Close()
		<-served
		_ = os.RemoveAll(dir)
	})
	return nil
}

// fakeCommand changes the agent: fail METHOD KIND TEXT, taskfail TYPE TEXT, says TYPE LINE, endless, stopped VMID, noquorum, alone, alarm SID TEXT,
// disarmed, measured, unmeasured, minority, along SID, blocked SID, disarm-node NODE, noplan,
// group ID NODES, dropped RULE WHY, await CALL; calls prints what was asked of it.
func fakeCommand(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value(fakeKey{}).(*apitest.Fake)
	switch args[0] {
	case "await":
		await(ts, f, args[1])
	case "calls":
		fmt.Fprintln(ts.Stdout(), strings.Join(f.Calls(), "\n"))
	default:
		f.Change(func() { change(ts, f, args) })
	}
}

func change(ts *testscript.TestScript, f *apitest.Fake, args []string) {
	switch args[0] {
	case "fail":
		f.Fail[args[1]] = model.Errorf(api.ErrorOfKind(args[2]), "%s", args[3])
	case "taskfail":
		f.TaskFails[args[1]] = args[2]
	case "says":
		f.TaskSays[args[1]] = args[2]
	case "endless":
		f.Endless = true
	case "stopped":
		for i := range f.Guests {
			if f.Guests[i].VMID.String() == args[1] {
				f.Guests[i].Status = "stopped"
			}
		}
	case "alarm":
		f.Alarms = []api.HAAlarm{{SID: args[1], Unix: apitest.Start, Text: args[2]}}
	case "disarmed":
		f.Alarms, f.HA.Problems = nil, []string{"ha/rules.cfg: line 3: nodes: \"N 2\" is not a node: what it said before stays in force; mend it"}
		f.HA.Disarm, f.HA.Until, f.HA.Manager, f.HA.Quorate = "ignore", apitest.Start+9000, "", false
		f.HA.Nodes[1].Disarm, f.HA.Nodes[0].Mode = "freeze", "reboot"
		f.HA.Tolerance = &api.HATolerance{Nodes: 0, Exact: true, Quorum: true}
	case "measured":
		f.HA.Nodes[0].Load = &api.HALoad{Measured: true, CPU: 1.25, CPUs: 4, MemoryMiB: 1536, MaxMemoryMiB: 8192}
		f.HA.Nodes[1].Load = &api.HALoad{CPUs: 1, MaxMemoryMiB: 8192}
	case "unmeasured":
		f.HA.Nodes[0].Load, f.HA.Nodes[1].Load = nil, nil
	case "minority":
		f.Plan.Quorate = false
	case "along":
		f.Moved.With = args[1:]
	case "disarm-node":
		for i := range f.HA.Nodes {
			if f.HA.Nodes[i].Node == args[1] {
				f.HA.Nodes[i].Disarm = "freeze"
			}
		}
	case "noplan":
		f.Plan.Moves, f.Plan.Down = []api.HAPlacement{}, []api.HAPlacement{}
	case "group":
		f.Groups.List = append(f.Groups.List, api.Section{Type: "group", ID: args[1], Values: map[string]string{"nodes": args[2], "restricted": "1"}})
	case "dropped":
		f.Rules.Dropped = map[string]string{args[1]: args[2]}
	case "blocked":
		f.Moved.Blocking = []api.HABlocking{{SID: args[1], Cause: "resource-affinity"}}
	case "alone":
		f.Info.ClusterMember, f.Info.Guard.Epoch, f.Info.Guard.LeaseMS = false, 0, 0
	case "noquorum":
		f.Cluster.Quorate, f.Cluster.TotalVotes, f.Cluster.Leader, f.Cluster.Manager = false, 1, "", ""
		f.Cluster.Nodes[1].Online, f.Cluster.Nodes[2].Online = false, false
		f.Cluster.Nodes[2].Fenced = true
	default:
		ts.Fatalf("fake %s?", args[0])
	}
}

func await(ts *testscript.TestScript, f *apitest.Fake, call string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		for _, c := range f.Calls() {
			if strings.HasPrefix(c, call) {
				return
			}
		}
		<-time.After(5 * time.Millisecond)
	}
	ts.Fatalf("the agent was never asked for %s", call)
}

func TestWhatWasInterruptedEndsWithTheStatusThatAShellGivesIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr strings.Builder
	m := &cli.Main{Stdout: io.Discard, Stderr: &stderr, Getenv: func(string) string { return "/nowhere" }, Now: now}
	if got := m.Run(ctx, []string{"cluster", "status"}); got != 130 || stderr.String() != "sauh: interrupted\n" {
		t.Errorf("status %d, %q", got, stderr.String())
	}
}
