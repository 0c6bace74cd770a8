package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// Room is a client of a running room. It keeps no connection; its methods may
// be called from several goroutines. Those that a node is named to return
// model.ErrNotFound for one that the room does not have.
type Room struct {
	name, dir, cgroup string
	// started is the supervisor if this process started it, so that Down can collect it.
	started *os.Process
}

// pointer tells where a room of a given name is.
type pointer struct {
	Dir    string `json:"dir"`
	Cgroup string `json:"cgroup"`
}

func readPointer(name string) (pointer, error) {
	p := pointer{Dir: filepath.Join(StateRoot, name)}
	text, err := os.ReadFile(pointerPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		root, err := sys.Cgroup2Root()
		if err != nil {
			return p, err
		}
		p.Cgroup = filepath.Join(root, cgroupName(name))
		return p, nil
	} else if err != nil {
		return p, err
	}
	return p, json.Unmarshal(text, &p)
}

// Open finds the room of that name. It fails with model.ErrNotFound if there is
// none, and with model.ErrUnavailable if its supervisor does not answer.
func Open(ctx context.Context, name string) (*Room, error) {
	if err := validateName(name); err != nil {
		return nil, err
	}
	if err := needRoot(); err != nil {
		return nil, err
	}
	p, err := readPointer(name)
	if err != nil {
		return nil, err
	}
	if !exists(p.Cgroup) {
		return nil, model.Errorf(model.ErrNotFound, "there is no room %q: start one with `sauh lab up --name %s`", name, name)
	}
	r := &Room{name: name, dir: p.Dir, cgroup: p.Cgroup}
	if _, err := r.Status(ctx); err != nil {
		return nil, model.Errorf(model.ErrUnavailable, "room %q does not answer (%v): remove it with `sauh lab down --name %s`", name, err, name)
	}
	return r, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the machine room needs root: run it with sudo")
	}
	return nil
}

// Name is the room's name.
func (r *Room) Name() string { return r.name }

// Dir is the room's directory on the host.
func (r *Room) Dir() string { return r.dir }

// NAS is the directory on the host that every node sees as /srv/nas.
func (r *Room) NAS() string { return nasPath(r.dir) }

// Log is the directory on the host that a node sees as /var/log/sauh.
func (r *Room) Log(node string) string { return filepath.Join(nodesPath(r.dir), node, "log") }

// Cgroup is a node's cgroup as the host sees it, or the supervisor's for RoomName.
func (r *Room) Cgroup(node string) string { return filepath.Join(r.cgroup, node) }

func (r *Room) call(ctx context.Context, req request) (response, error) {
	resp, files, err := call(ctx, r.dir, req)
	sys.CloseAll(files)
	if err != nil {
		return resp, err
	}
	return resp, resp.err()
}

// Status asks the room and adds the processes as the host numbers them.
func (r *Room) Status(ctx context.Context) (Status, error) {
	resp, err := r.call(ctx, request{Op: "status"})
	if err != nil {
		return Status{}, err
	}
	st := *resp.Status
	st.Cgroup = r.cgroup
	st.PID = first(r.pids(filepath.Join(RoomName, "supervisor")))
	for i := range st.Nodes {
		n := &st.Nodes[i]
		n.PIDs = r.pids(n.Node)
		n.PID = first(r.pids(filepath.Join(n.Node, initScope)))
	}
	return st, nil
}

func (r *Room) pids(cgroup string) []int {
	pids, err := sys.CgroupProcesses(filepath.Join(r.cgroup, cgroup))
	if err != nil || pids == nil {
		return []int{}
	}
	return pids
}

func first(pids []int) int {
	if len(pids) == 0 {
		return 0
	}
	return slices.Min(pids)
}

// Power acts on a node's power and returns when it is done: after PowerOff no
// process of the node is left, after PowerOn its units are started.
func (r *Room) Power(ctx context.Context, node string, a PowerAction) (PowerResult, error) {
	if err := r.drain(ctx, node, a); err != nil {
		return PowerResult{}, err
	}
	resp, err := r.call(ctx, request{Op: "power", Node: node, Action: a})
	if err != nil {
		return PowerResult{}, err
	}
	return *resp.Power, nil
}

// drain runs in the node what its systemd would run before it stops the services. A node that is no member has nothing to say.
func (r *Room) drain(ctx context.Context, node string, a PowerAction) error {
	argv := []string{"sauh", "node", "drain"}
	switch a {
	case PowerReboot:
		argv = append(argv, "--reboot")
	case PowerShutdown:
	default:
		return nil
	}
	if out, err := r.Exec(ctx, node, argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("drain %s: %w: %s", node, err, bytes.TrimSpace(out))
	}
	return nil
}

// Link plugs a node's cable in or out at the switch; the node sees its carrier
// go. It holds over power cycles.
func (r *Room) Link(ctx context.Context, node string, n Network, up bool) error {
	_, err := r.call(ctx, request{Op: "link", Node: node, Network: n, Up: up})
	return err
}

// Partition adds to what the switches drop between nodes. What the room itself
// sends and receives is never dropped.
func (r *Room) Partition(ctx context.Context, p Partition) error {
	_, err := r.call(ctx, request{Op: "partition", Partition: &p})
	return err
}

// Heal ends all partitions. Links that were unplugged stay so.
func (r *Room) Heal(ctx context.Context) error {
	_, err := r.call(ctx, request{Op: "heal"})
	return err
}

// Exec returns a command that runs argv in the namespaces and cgroup of a node,
// or of the room itself for RoomName. Its standard streams and exit status are
// those of the program there. When ctx is done the program is killed.
func (r *Room) Exec(ctx context.Context, node string, argv ...string) *exec.Cmd {
	args := append([]string{"lab", "internal", "exec", r.dir, node}, argv...)
	cmd := exec.CommandContext(ctx, binaryPath(r.dir), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Down removes the room and everything in it; see [Down].
func (r *Room) Down(ctx context.Context, keepData bool) ([]string, error) {
	removed, err := Down(ctx, r.name, keepData)
	if r.started != nil && err == nil {
		_, err = r.started.Wait()
		if errors.Is(err, unix.ECHILD) {
			err = nil
		}
		r.started = nil
	}
	return removed, err
}
