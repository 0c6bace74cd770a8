package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
)

const (
	// ipmiPort is that of RMCP+.
	ipmiPort = "623"
	// simTimeout bounds starting and killing it; both take some 10 ms.
	simTimeout = 10 * time.Second
)

// ipmiSim is the IPMI of a node's BMC: a process ipmi_sim in the room, for whose chassis the room answers. A nil one does
// nothing. It is not safe for concurrent use.
type ipmiSim struct {
	node     *node
	program  string
	address  string // host:port
	password string

	// Of the process.

	pid     int // 0 if there is none
	ended   <-chan unix.WaitStatus
	uuid    string // that it names
	stopped bool
}

// newIPMISim returns nil if the program is not installed.
func newIPMISim(n *node, address, password string) (*ipmiSim, error) {
	program, err := exec.LookPath(bmc.IPMISimProgram)
	if errors.Is(err, exec.ErrNotFound) {
		n.room.log.Printf("%s: no IPMI: the program %s is missing (package openipmi)", n.name, bmc.IPMISimProgram)
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &ipmiSim{node: n, program: program, address: net.JoinHostPort(address, ipmiPort), password: password}, nil
}

// run sees to it that the process runs, names this UUID, and is stopped or not. Idempotent; one that ended by itself is
// started again.
func (s *ipmiSim) run(uuid string, stopped bool) error {
	if s == nil {
		return nil
	}
	if s.pid != 0 && (s.uuid != uuid || len(s.ended) > 0) {
		if err := s.kill(); err != nil {
			return err
		}
	}
	if s.pid == 0 {
		if err := s.start(uuid); err != nil {
			return fmt.Errorf("start %s of %s: %w", bmc.IPMISimProgram, s.node.name, err)
		}
	}
	if s.stopped == stopped {
		return nil
	}
	sig := unix.SIGCONT
	if stopped {
		sig = unix.SIGSTOP
	}
	s.stopped = stopped
	return unix.Kill(s.pid, sig)
}

// kill returns when the process is gone. Idempotent.
func (s *ipmiSim) kill() error {
	if s == nil || s.pid == 0 {
		return nil
	}
	if len(s.ended) == 0 {
		if err := unix.Kill(s.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %s of %s: %w", bmc.IPMISimProgram, s.node.name, err)
		}
	}
	select {
	case <-s.ended:
	case <-time.After(simTimeout):
		return fmt.Errorf("kill %s of %s: it does not end", bmc.IPMISimProgram, s.node.name)
	}
	s.pid, s.stopped = 0, false
	return nil
}

func (s *ipmiSim) start(uuid string) error {
	dir, argv, err := s.configure(uuid)
	if err != nil {
		return err
	}
	// A cgroup beside the supervisor's, which has nobody but the supervisor.
	group := filepath.Join(s.node.room.cgroup, RoomName, "bmc")
	if err := os.MkdirAll(group, 0o755); err != nil {
		return err
	}
	cgroup, err := os.Open(group)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	s.pid, s.ended, err = s.node.room.reaper.Start(s.program, argv, &os.ProcAttr{
		Dir: dir, Env: os.Environ(), Files: []*os.File{null, os.Stdout, os.Stderr},
		Sys: &unix.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())},
	})
	s.uuid = uuid
	return err
}

// configure makes the directory of a new ipmi_sim.
func (s *ipmiSim) configure(uuid string) (dir string, argv []string, err error) {
	dir = filepath.Join(s.node.runDir(), "ipmi")
	if err := os.RemoveAll(dir); err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	room := s.node.room.config.Dir
	script := fmt.Sprintf(chassisScript, shellQuote(binaryPath(room)), shellQuote(room), s.node.name)
	if err := os.WriteFile(filepath.Join(dir, "chassis"), []byte(script), 0o700); err != nil {
		return "", nil, err
	}
	sim := bmc.IPMISim{Address: s.address, User: BMCUser, Password: s.password, UUID: uuid, Chassis: "./chassis"}
	argv, err = sim.Write(dir)
	return dir, argv, err
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// chassisScript is what ipmi_sim runs with "get power", "set power 0" and the like; see runChassis.
const chassisScript = `#!/bin/sh
exec %s lab internal chassis %s %s "$@"
`

// runChassis answers for a node's chassis to ipmi_sim, in the words of its extension programs: "get power" is answered
// with power:1 or power:0, "set power 0", "set power 1" and "set reset 1" with nothing.
func runChassis(ctx context.Context, dir, node string, words []string) (string, error) {
	req := request{Op: "chassis", Node: node}
	switch line := strings.Join(words, " "); line {
	case "get power":
	case "set power 0":
		req.Action = PowerOff
	case "set power 1":
		req.Action = PowerOn
	case "set reset 1":
		req.Action = PowerReset
	default:
		return "", model.Errorf(model.ErrInvalid, "the chassis of %s cannot %q", node, line)
	}
	resp, _, err := call(ctx, dir, req)
	if err == nil {
		err = resp.err()
	}
	switch {
	case err != nil || req.Action != "":
		return "", err
	case resp.Power.Power == StateOn:
		return "power:1\n", nil
	}
	return "power:0\n", nil
}

// chassis is what the BMC says or does when its IPMI is asked for the chassis; "" asks for the power. It returns when the
// BMC says that it is done.
func (c *controller) chassis(ctx context.Context, a PowerAction) (PowerResult, error) {
	if c.redfish.Fault() == bmc.Late {
		select {
		case <-ctx.Done():
			return PowerResult{}, ctx.Err()
		case <-time.After(bmc.LateBy):
		}
	}
	res := PowerResult{Node: c.node.name, Power: StateOff}
	if a == "" {
		if c.redfish.On() {
			res.Power = StateOn
		}
		return res, nil
	}
	order, ok := map[PowerAction]bmc.Order{PowerOff: bmc.ForceOff, PowerOn: bmc.PowerOn, PowerReset: bmc.ForceRestart}[a]
	if !ok {
		return res, model.Errorf(model.ErrInvalid, "%q cannot be done to a chassis: use off, on or reset", a)
	}
	done := make(chan error, 2) // that it was taken, and that it was carried out
	c.node.room.background.Go(func() { done <- c.redfish.Switch(ctx, order, func() { done <- nil }) })
	return res, <-done
}
