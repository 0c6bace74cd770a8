package lab

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab/watchdog"
	"sauh.dev/sauh/internal/sys"
)

// node is one machine. Its goroutine (run) alone switches its power and links;
// everybody else asks through calls.
type node struct {
	name   string
	index  int
	room   *supervisor
	device *watchdog.Device
	calls  chan func()
	// signals bring what the node's hardware wants: the watchdog ran out, sysrq.
	signals chan powerSignal

	// Of run's goroutine.
	machine *machine // nil while off

	mu     sync.Mutex
	status NodeStatus
	links  map[Network]bool

	bmc *controller
	// powered is true from power on until no process of the node is left.
	powered atomic.Bool
}

// machine is a node between power on and power off.
type machine struct {
	pid    int // init's, in the room
	bootID string
	ended  <-chan unix.WaitStatus
}

type powerSignal struct {
	off bool
	why string
}

const (
	// bootTimeout bounds mounts and network of a node; they take about 100 ms.
	bootTimeout = 30 * time.Second
	// resetPause is the firmware's part of a reset; it bounds a node that resets itself at each boot.
	resetPause = time.Second
)

func newNode(s *supervisor, index int) (*node, error) {
	n := &node{
		name: NodeName(index), index: index, room: s,
		calls: make(chan func()), signals: make(chan powerSignal, 1),
		links: map[Network]bool{Mgmt: true, Cluster: true},
	}
	n.status = NodeStatus{
		Node: n.name, Power: StateOff, Since: time.Now(), Resets: []ResetRecord{},
		MgmtAddress: MgmtAddress(index), ClusterAddress: ClusterAddress(index),
	}
	n.device = watchdog.New(func(timeout time.Duration) {
		n.signal(powerSignal{why: fmt.Sprintf("watchdog: not fed for %v", timeout)})
	})
	for _, dir := range []string{"dev", "root"} {
		if err := os.MkdirAll(filepath.Join(n.runDir(), dir), 0o755); err != nil {
			return nil, err
		}
	}
	if _, err := watchdog.Mount(filepath.Join(n.runDir(), "dev"), n.device, n.sysrq); err != nil {
		return nil, fmt.Errorf("make watchdog of %s: %w", n.name, err)
	}
	var err error
	if n.bmc, err = newController(n); err != nil {
		return nil, err
	}
	return n, writeUUID(n)
}

// runDir is a node's directory in the room's private tmpfs.
func (n *node) runDir() string { return filepath.Join(runPath(n.room.config.Dir), n.name) }
func (n *node) cgroup() string { return filepath.Join(n.room.cgroup, n.name) }

// signal must not block: the node's own process waits in the file system that calls it.
func (n *node) signal(s powerSignal) {
	select {
	case n.signals <- s:
	default: // one is on its way
	}
}

// sysrq does what the kernel would: b resets, o powers off, c crashes.
func (n *node) sysrq(letter byte) {
	switch letter {
	case 'b', 'c':
		n.signal(powerSignal{why: "sysrq " + string(letter)})
	case 'o':
		n.signal(powerSignal{off: true, why: "sysrq o"})
	}
}

func (n *node) run(ctx context.Context) {
	for {
		var ended <-chan unix.WaitStatus
		if n.machine != nil {
			ended = n.machine.ended
		}
		select {
		case <-ctx.Done():
			return
		case f := <-n.calls:
			f()
		case s := <-n.signals:
			if n.machine != nil {
				n.obey(ctx, s)
			}
		case st := <-ended:
			n.initEnded(ctx, st)
		}
	}
}

// do runs f on the node's goroutine and waits for it.
func (n *node) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case n.calls <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *node) power(ctx context.Context, a PowerAction) (PowerResult, error) {
	res := PowerResult{Node: n.name}
	var err error
	doErr := n.do(ctx, func() { err = n.act(ctx, a, &res) })
	res.Power = n.report().Power
	return res, errors.Join(doErr, err)
}

func (n *node) act(ctx context.Context, a PowerAction, res *PowerResult) error {
	switch a {
	case PowerShutdown, PowerReboot:
		return n.end(ctx, a == PowerReboot, res)
	case PowerOff, PowerCycle, PowerReset:
		if n.machine != nil {
			res.Changed = true
			if err := n.cut(ctx, res); err != nil {
				return err
			}
			n.set(StateOff, "by command")
		}
		if a == PowerOff {
			return nil
		}
		if a == PowerReset && res.Changed {
			n.countReset("by command")
		}
	case PowerOn:
		if n.machine != nil {
			return nil
		}
	default:
		return model.Errorf(model.ErrInvalid, "%q cannot be done to a node's power: use on, off, cycle, reset, shutdown or reboot", a)
	}
	res.Changed = true
	return n.boot(ctx, false, res)
}

// end has the node's init stop its units and then the machine.
func (n *node) end(ctx context.Context, reboot bool, res *PowerResult) error {
	if n.machine == nil {
		return nil
	}
	sig := unix.SIGTERM
	if reboot {
		sig = unix.SIGINT
	}
	if err := unix.Kill(n.machine.pid, sig); err != nil {
		return fmt.Errorf("end %s: %w", n.name, err)
	}
	limit := time.NewTimer(2*stopTimeout + bootTimeout)
	defer limit.Stop()
	select {
	case st := <-n.machine.ended:
		res.Changed, res.CutAt = true, time.Now()
		n.initEnded(ctx, st)
		return nil
	case <-limit.C:
		return fmt.Errorf("end %s: its init does not stop the units, see its init.log", n.name)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cut takes the power away: first the cables, so that no dying process can say
// goodbye to its peers, then every process at one stroke.
func (n *node) cut(ctx context.Context, res *PowerResult) error {
	res.CutAt = time.Now()
	for _, network := range AllNetworks.each() {
		if err := n.room.switches.set(n.name, network, false); err != nil {
			return err
		}
	}
	if err := sys.Cgroup(n.cgroup()).Kill(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kill %s: %w", n.name, err)
	}
	return n.clear(ctx, res)
}

// clear waits until nothing of a dead node is left and removes its ports and cgroups.
func (n *node) clear(ctx context.Context, res *PowerResult) error {
	wait, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	select {
	case <-n.machine.ended:
	case <-wait.Done():
		return fmt.Errorf("power off %s: its init does not end: %w", n.name, wait.Err())
	}
	if err := sys.Cgroup(n.cgroup()).WaitEmpty(wait); err != nil {
		return fmt.Errorf("power off %s: %w", n.name, err)
	}
	res.Killed = time.Since(res.CutAt)
	n.machine = nil
	n.powered.Store(false)
	if err := n.bmc.follow(); err != nil {
		return err
	}
	n.device.PowerOn(false)
	for len(n.signals) > 0 { // what the dead machine still wanted
		<-n.signals
	}
	n.room.log.Printf("%s: off after %v", n.name, res.Killed)
	if err := n.room.switches.unplug(n.name); err != nil {
		return err
	}
	return sys.Cgroup(n.cgroup()).Remove()
}

// obey does what the node's hardware asks for.
func (n *node) obey(ctx context.Context, s powerSignal) {
	var res PowerResult
	if err := n.cut(ctx, &res); err != nil {
		n.set(StateFailed, err.Error())
		return
	}
	if s.off {
		n.set(StateOff, s.why)
		return
	}
	n.reset(ctx, s.why)
}

// initEnded finds out why pid 1 is gone: reboot(2) in a pid namespace ends it
// with SIGHUP for a restart and SIGINT for a power off.
func (n *node) initEnded(ctx context.Context, st unix.WaitStatus) {
	n.machine.ended = replay(st)
	var res PowerResult
	if err := n.cut(ctx, &res); err != nil {
		n.set(StateFailed, err.Error())
		return
	}
	switch {
	case st.Signaled() && st.Signal() == unix.SIGHUP:
		n.reset(ctx, "rebooted itself")
	case st.Signaled() && st.Signal() == unix.SIGINT:
		n.set(StateOff, "powered itself off")
	case st.Signaled():
		n.set(StateFailed, fmt.Sprintf("its init was killed by signal %d", st.Signal()))
	default:
		n.set(StateFailed, fmt.Sprintf("its init ended with status %d, see %s", st.ExitStatus(), logPath(n.room.config.Dir)))
	}
}

func replay(st unix.WaitStatus) <-chan unix.WaitStatus {
	ch := make(chan unix.WaitStatus, 1)
	ch <- st
	return ch
}

func (n *node) reset(ctx context.Context, why string) {
	n.countReset(why)
	n.set(StateOff, why)
	select {
	case <-ctx.Done():
		return
	case <-time.After(resetPause):
	}
	var res PowerResult
	// boot notes a failure in the status.
	_ = n.boot(ctx, strings.HasPrefix(why, "watchdog"), &res)
}

// boot starts the node's init and waits until its units are started. When it
// fails the node is off again and its state says why.
func (n *node) boot(ctx context.Context, cardReset bool, res *PowerResult) error {
	start := time.Now()
	n.device.PowerOn(cardReset)
	n.powered.Store(true)
	err := n.bmc.follow()
	if err == nil {
		err = n.tryBoot(ctx)
	}
	if err == nil {
		res.Booted = time.Since(start)
		n.mu.Lock()
		n.status.Boots++
		n.mu.Unlock()
		n.set(StateOn, "")
		n.room.log.Printf("%s: on after %v", n.name, res.Booted)
		return nil
	}
	err = fmt.Errorf("boot %s: %w", n.name, err)
	if n.machine != nil {
		err = errors.Join(err, n.cut(ctx, &PowerResult{}))
	} else {
		n.powered.Store(false)
	}
	n.set(StateFailed, err.Error())
	return err
}

// bootSpec is what a node's init needs to know; it reads it from a pipe.
type bootSpec struct {
	Node   string   `json:"node"`
	Index  int      `json:"index"`
	Nodes  int      `json:"nodes"`
	Dir    string   `json:"dir"`
	Layers []string `json:"layers"`
	Units  []Unit   `json:"units"`
}

func (n *node) tryBoot(ctx context.Context) error {
	bootID, err := n.prepare()
	if err != nil {
		return err
	}
	specR, specW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer specW.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		_ = specR.Close()
		return err
	}
	defer readyR.Close()
	n.machine, err = n.startInit(specR, readyW, bootID)
	_, _ = specR.Close(), readyW.Close()
	if err != nil {
		return err
	}
	if err := n.room.switches.plug(n.name, n.index, n.machine.pid); err != nil {
		return err
	}
	spec := bootSpec{
		Node: n.name, Index: n.index, Nodes: n.room.config.Nodes, Dir: n.room.config.Dir,
		Layers: n.room.layers, Units: n.room.config.Units,
	}
	if err := json.NewEncoder(specW).Encode(spec); err != nil {
		return err
	}
	if err := waitReady(ctx, readyR, bootTimeout, "its init ended, see "+logPath(n.room.config.Dir)); err != nil {
		return err
	}
	return n.plugIn()
}

// plugIn switches the ports on whose cables are plugged in.
func (n *node) plugIn() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for network, up := range n.links {
		if err := n.room.switches.set(n.name, network, up); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what a boot needs new: the boot id and the cgroup.
func (n *node) prepare() (bootID string, err error) {
	bootID = newUUID()
	if err := os.WriteFile(filepath.Join(n.runDir(), "boot_id"), []byte(bootID+"\n"), 0o444); err != nil {
		return "", err
	}
	return bootID, sys.MakeCgroup(n.cgroup())
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (n *node) startInit(spec, ready *os.File, bootID string) (*machine, error) {
	cgroup, err := os.Open(n.cgroup())
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pid, ended, err := n.room.reaper.Start(binaryPath(n.room.config.Dir), []string{"sauh", "lab", "internal", "init"}, &os.ProcAttr{
		Dir: "/", Env: initEnvironment(),
		Files: []*os.File{null, os.Stdout, os.Stderr, spec, ready},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			// After the fork, in the node's cgroup already: so that becomes the root of what the node sees.
			Unshareflags: unix.CLONE_NEWCGROUP,
			Setsid:       true,
			UseCgroupFD:  true,
			CgroupFD:     int(cgroup.Fd()),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	return &machine{pid: pid, ended: ended, bootID: bootID}, nil
}

// nodePath is the PATH that systemd gives its units.
const nodePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// initEnvironment is a unit's environment.
func initEnvironment() []string {
	return []string{"PATH=" + nodePath, "LANG=C.UTF-8", "HOME=/root"}
}

func (n *node) link(ctx context.Context, network Network, up bool) error {
	if _, err := ParseNetwork(string(network)); err != nil {
		return err
	}
	var err error
	doErr := n.do(ctx, func() {
		for _, one := range network.each() {
			if err = n.room.switches.set(n.name, one, up); err != nil {
				return
			}
			n.mu.Lock()
			n.links[one] = up
			n.mu.Unlock()
		}
	})
	return errors.Join(doErr, err)
}

// open returns the node's namespaces and the cgroup for a program; see openInside.
func (n *node) open(ctx context.Context) ([]*os.File, error) {
	var files []*os.File
	err := model.Errorf(model.ErrUnavailable, "%s is off: switch it on with `sauh lab power %s on`", n.name, n.name)
	doErr := n.do(ctx, func() {
		if n.machine != nil {
			files, err = openInside(n.machine.pid, filepath.Join(n.cgroup(), sessionSlice))
		}
	})
	return files, errors.Join(doErr, err)
}

func (n *node) set(power, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.Power, n.status.Why, n.status.Since = power, why, time.Now()
	n.status.BootID = ""
	if n.machine != nil {
		n.status.BootID = n.machine.bootID
	}
	n.room.log.Printf("%s: %s %s", n.name, power, why)
}

func (n *node) countReset(why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.Resets = append(n.status.Resets, ResetRecord{At: time.Now(), Why: why})
}

func (n *node) report() NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.status
	st.Resets = append([]ResetRecord{}, st.Resets...)
	st.Mgmt, st.Cluster = n.links[Mgmt], n.links[Cluster]
	st.Watchdog = n.device.String()
	control := n.bmc.status()
	st.BMC = &control
	return st
}
