package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/sys"
)

// apiPort is the port of the API, as in Proxmox VE.
const apiPort = "8006"

// Options of an agent.
type Options struct {
	Paths   Paths // the zero value is DefaultPaths
	Version model.Version
	Lease   lease.Params // the zero value leaves it to the cluster's profile
	Log     *slog.Logger
	// Probe is the command that probes a storage; its directory and a name are added. nil probes none.
	Probe []string
}

// Agent is a node's agent. It serves the API on the local socket from its
// start, and everything else while the node is a member of a cluster. It implements api.Cluster; a member has the other roles.
type Agent struct {
	opts  Options
	cfg   Config
	log   *slog.Logger
	tasks *task.List
	host  *hostInfo
	boot  string       // boot id
	alone http.Handler // the API of a node that is no member

	joining sync.Mutex // held by Create, Join and Leave
	current atomic.Pointer[member]
	fatal   chan error // what the agent cannot go on with
	wg      sync.WaitGroup
}

// Run is the agent of this node until ctx is done.
func Run(ctx context.Context, opts Options) error {
	if opts.Paths == (Paths{}) {
		opts.Paths = DefaultPaths()
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	a, err := newAgent(ctx, opts)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

func newAgent(ctx context.Context, opts Options) (*Agent, error) {
	cfg, err := loadConfig(opts.Paths.Config)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{opts.Paths.State, opts.Paths.Run, opts.Paths.qemuRun()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("agent directories: %w", err)
		}
	}
	boot, err := sys.BootID()
	if err != nil {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	a := &Agent{opts: opts, cfg: cfg, log: opts.Log, boot: boot, host: &hostInfo{probed: make(chan struct{})}, fatal: make(chan error, 1)}
	a.tasks, err = task.Open(ctx, opts.Paths.tasks(), a.nodeName, opts.Log)
	if err != nil {
		return nil, err
	}
	if ms, err := loadMembership(opts.Paths.membership()); err == nil && ms == nil {
		a.wipeMembership() // what an agent that ended while it wiped, or joined, has left; nobody can join yet
	}
	a.alone = api.NewServer(api.Backend{Cluster: a, Tasks: a.tasks, Absent: a.noMember}, api.Options{Logger: opts.Log})
	return a, nil
}

// run serves the local socket, starts the membership that is recorded, and
// stops both in order when ctx is done. Guests run on.
func (a *Agent) run(ctx context.Context) error {
	ln, err := listenUnix(ctx, a.opts.Paths.apiSocket())
	if err != nil {
		return err
	}
	srv := a.httpServer()
	srv.ConnContext = api.LocalConnContext
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	a.host.setVersion(qemu.QEMUVersion(ctx))
	ms, err := loadMembership(a.opts.Paths.membership())
	if err == nil && ms != nil {
		err = a.startMember(ctx, ms)
	}
	if err != nil {
		_ = srv.Close()
		a.log.Debug("the local API stopped", "err", <-served)
		return err
	}
	a.wg.Go(func() { a.host.probeAccel(ctx, a.opts.Paths.State, a.log) })
	a.log.Info("agent is up", "node", a.nodeName(), "member", ms != nil, "boot", a.boot, "go", runtime.Version())
	select {
	case <-ctx.Done():
	case err = <-served:
	case err = <-a.fatal:
	}
	a.tasks.Stop(move.ErrAbandoned)
	a.stopMember()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = srv.Shutdown(stop)
	a.wg.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// leaseOf returns the times of the lease in a cluster. An agent that does not know its profile must not guess.
func (a *Agent) leaseOf(c model.Cluster) (lease.Params, error) {
	p, err := a.opts.Lease, error(nil)
	if p == (lease.Params{}) {
		p, err = lease.Profile(c.HAProfile)
	}
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return p, fmt.Errorf("lease of cluster %s: %w", c.Name, err)
	}
	return p, nil
}

func (a *Agent) httpServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(a.serveAPI),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1 only, as the API's clients expect
	}
}

// serveAPI answers as the member that this node is, or as a node that is none.
func (a *Agent) serveAPI(w http.ResponseWriter, r *http.Request) {
	if m := a.current.Load(); m != nil {
		m.handler.ServeHTTP(w, r)
		return
	}
	a.alone.ServeHTTP(w, r)
}

// listenUnix makes the root-only socket, replacing one that a dead agent left.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	dialer := net.Dialer{Timeout: time.Second}
	if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another agent answers on %s: stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace %s: %w", path, err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen on %s: %w", filepath.Base(path), err)
	}
	return ln, nil
}

// nodeName is the name in the cluster, or the configured one before that.
func (a *Agent) nodeName() string {
	if m := a.current.Load(); m != nil {
		return m.name
	}
	return a.cfg.Node
}

// member returns what runs while this node belongs to a cluster.
func (a *Agent) member() (*member, error) {
	if m := a.current.Load(); m != nil {
		return m, nil
	}
	return nil, a.noMember()
}

// noMember says why this node cannot do what only a member can.
func (a *Agent) noMember() error {
	if err := a.refuseWhileStarting(); err != nil {
		return err
	}
	return model.Errorf(model.ErrUnavailable, "this node belongs to no cluster%s: make one with `sauh cluster create NAME`, or join one with `sauh cluster join KEY`", a.former())
}

// refuseWhileStarting tells a node that belongs to no cluster from one whose membership is recorded and does not run: its
// agent is starting or stopping.
func (a *Agent) refuseWhileStarting() error {
	ms, err := loadMembership(a.opts.Paths.membership())
	if err != nil {
		return fmt.Errorf("read this node's membership: %w", err)
	}
	if ms != nil {
		return model.Errorf(model.ErrUnavailable, "this node is a member of cluster %s, and its agent is just starting or stopping: try again in a moment", ms.Cluster.Name)
	}
	return nil
}
