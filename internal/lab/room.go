package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// supervisor is the room itself: pid 1 of the room's pid namespace, so that all
// nodes end with it. It owns the switches and starts and kills the nodes' inits.
type supervisor struct {
	config   Config
	cgroup   string // the room's cgroup as the room sees it
	layers   []string
	log      *log.Logger
	reaper   *sys.Reaper
	switches *switches
	nodes    []*node
	since    time.Time
	// background has what ends with the room's context: the servers of the BMCs, and the orders that they carry out.
	background *sync.WaitGroup
}

// The cgroups below a node's and the room's own.
const (
	initScope    = "init.scope"
	systemSlice  = "system.slice"
	sessionSlice = "user.slice"
	roomCgroups  = "/sys/fs/cgroup"
)

// runSupervisor is the main function of the room's process. It says on ready
// that all nodes are up, or why not, and returns when the room cannot go on.
func runSupervisor(dir string, ready *os.File) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	s, err := newSupervisor(dir)
	if err != nil {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: controlPath(dir)})
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	defer func() { _ = listener.Close() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.reaper.Run(ctx) })
	s.background = &wg
	if err := s.setUp(); err != nil {
		return err
	}
	for i, n := range s.nodes {
		if err := n.bmc.serve(ctx, s.nodes[(i+1)%len(s.nodes)]); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		if err := n.bmc.answers(ctx); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		wg.Go(func() { n.run(ctx) })
	}
	if err := s.bootAll(ctx); err != nil {
		return err
	}
	s.since = time.Now()
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	if _, err := ready.WriteString("ok"); err != nil {
		return err
	}
	_ = ready.Close()
	s.log.Printf("room %s is up, %d nodes", s.config.Name, len(s.nodes))
	return s.serve(ctx, listener)
}

func newSupervisor(dir string) (*supervisor, error) {
	text, err := os.ReadFile(configPath(dir))
	if err != nil {
		return nil, err
	}
	s := &supervisor{log: log.New(os.Stderr, "", log.LstdFlags|log.Lmicroseconds), reaper: sys.NewReaper()}
	if err := json.Unmarshal(text, &s.config); err != nil {
		return nil, fmt.Errorf("read %s: %w", configPath(dir), err)
	}
	s.cgroup = filepath.Join(roomCgroups, cgroupName(s.config.Name))
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	s.layers = hostLayers(string(info))
	return s, nil
}

func (s *supervisor) setUp() error {
	if err := sys.LeaveCPUCgroupV1(); err != nil {
		return fmt.Errorf("leave the cpu group of the caller: %w", err)
	}
	if err := sys.PrivateMounts(); err != nil {
		return err
	}
	// /run/sauh-lab and the like of the host stay visible: the room is no node.
	err := sys.MountAll([]sys.Mount{
		{Source: "proc", Target: "/proc", Type: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{Source: "cgroup2", Target: roomCgroups, Type: "cgroup2", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{Source: "tmpfs", Target: runPath(s.config.Dir), Type: "tmpfs", Data: "mode=700"},
	})
	if err != nil {
		return err
	}
	s.switches = newSwitches(s.reaper)
	if err := s.switches.setUp(); err != nil {
		return err
	}
	for i := range s.config.Nodes {
		n, err := newNode(s, i+1)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
	}
	return nil
}

func (s *supervisor) bootAll(ctx context.Context) error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, n := range s.nodes {
		wg.Go(func() { _, errs[i] = n.power(ctx, PowerOn) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *supervisor) node(name string) (*node, error) {
	for _, n := range s.nodes {
		if n.name == name {
			return n, nil
		}
	}
	return nil, model.Errorf(model.ErrNotFound, "room %q has no node %q: its nodes are n1 to n%d", s.config.Name, name, len(s.nodes))
}

func (s *supervisor) serve(ctx context.Context, l *net.UnixListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		wg.Go(func() { s.answer(ctx, c) })
	}
}

// answer serves one connection: one request, one response.
func (s *supervisor) answer(ctx context.Context, c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	// A client writes its line at once; the time bounds one that does not.
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var req request
	if err := json.NewDecoder(c).Decode(&req); err != nil {
		return
	}
	resp, files, err := s.handle(ctx, req)
	if err != nil {
		resp = errorResponse(err)
	}
	defer sys.CloseAll(files)
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := send(c, resp, files); err != nil {
		s.log.Printf("answer %s: %v", req.Op, err)
	}
}

func (s *supervisor) handle(ctx context.Context, req request) (response, []*os.File, error) {
	switch req.Op {
	case "status":
		st := s.status()
		return response{Status: &st}, nil, nil
	case "heal":
		return response{}, nil, s.switches.heal()
	case "partition":
		return response{}, nil, s.partition(req.Partition)
	case "exec":
		files, err := s.openNode(ctx, req.Node)
		return response{}, files, err
	}
	n, err := s.node(req.Node)
	if err != nil {
		return response{}, nil, err
	}
	switch req.Op {
	case "power":
		res, err := n.power(ctx, req.Action)
		return response{Power: &res}, nil, err
	case "link":
		return response{}, nil, n.link(ctx, req.Network, req.Up)
	case "bmc":
		return response{}, nil, n.setBMC(ctx, req.Fault)
	case "chassis":
		res, err := n.bmc.chassis(ctx, req.Action)
		return response{Power: &res}, nil, err
	}
	return response{}, nil, model.Errorf(model.ErrInvalid, "the room knows no operation %q: its sauh is another version", req.Op)
}

func (s *supervisor) status() Status {
	st := Status{Name: s.config.Name, Dir: s.config.Dir, Since: s.since, Drops: s.switches.dropped()}
	for _, n := range s.nodes {
		st.Nodes = append(st.Nodes, n.report())
	}
	return st
}

// openNode returns the namespaces of a node or of the room, and last the cgroup for a program there.
func (s *supervisor) openNode(ctx context.Context, name string) ([]*os.File, error) {
	if name == RoomName {
		return openInside(os.Getpid(), filepath.Join(s.cgroup, RoomName, sessionSlice))
	}
	n, err := s.node(name)
	if err != nil {
		return nil, err
	}
	return n.open(ctx)
}

func openInside(pid int, cgroup string) ([]*os.File, error) {
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, err
	}
	files, err := sys.OpenNamespaces(pid)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(cgroup)
	if err != nil {
		sys.CloseAll(files)
		return nil, err
	}
	return append(files, f), nil
}

func (s *supervisor) partition(p *Partition) error {
	if p == nil {
		return model.Errorf(model.ErrInvalid, "a partition needs groups")
	}
	drops, err := p.drops(func(name string) error {
		_, err := s.node(name)
		return err
	})
	if err != nil {
		return err
	}
	return s.switches.drop(drops)
}

// drops are the directions in which packets shall be dropped; known says whether there is such a node.
func (p Partition) drops(known func(string) error) ([]Drop, error) {
	if p.Network != "" {
		if _, err := ParseNetwork(string(p.Network)); err != nil {
			return nil, err
		}
	}
	if len(p.Groups) < 2 {
		return nil, model.Invalidf("partition", "it needs two groups of nodes or more, for example n1 n2,n3")
	}
	var seen []string
	for _, g := range p.Groups {
		if len(g) == 0 {
			return nil, model.Invalidf("partition", "a group is empty")
		}
		for _, name := range g {
			if err := known(name); err != nil {
				return nil, err
			}
			if slices.Contains(seen, name) {
				return nil, model.Invalidf("partition", "%s is named twice", name)
			}
			seen = append(seen, name)
		}
	}
	var drops []Drop
	for i, from := range p.Groups {
		for j, to := range p.Groups {
			if i == j || p.OneWay && i > j {
				continue
			}
			drops = append(drops, product(p.Network.each(), from, to)...)
		}
	}
	return drops, nil
}

func product(networks []Network, from, to []string) []Drop {
	var drops []Drop
	for _, n := range networks {
		for _, f := range from {
			for _, t := range to {
				drops = append(drops, Drop{Network: n, From: f, To: t})
			}
		}
	}
	return drops
}
