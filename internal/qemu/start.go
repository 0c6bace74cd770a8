package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/sys"
)

// startTimeout bounds the time from exec to QEMU's going into the background.
// It opens images and allocates memory then; a dead storage makes it hang.
const startTimeout = 30 * time.Second

// maxSocketPath is the kernel's limit for the path of a Unix socket, its final zero included.
const maxSocketPath = 108

// state is the content of <vmid>.json. PID 0 means that the start is not over.
type state struct {
	Spec  Spec  `json:"spec"`
	Facts Facts `json:"facts"`
}

// Start runs QEMU detached: in a session of its own, without a parent, inside
// cgroupDir from its first instruction. The cgroup is this guest's alone and must exist: for a protected guest the
// guard made it, and one that the guard has removed again means that the guest may not run. When it returns,
// QEMU has opened its disks and its monitor answers; with Spec.Paused or Spec.Incoming the guest does not run yet.
//
// The error is a sentence. model.ErrBusy (storage.ErrInUse is the same): the guest runs here
// already, or an image or interface is in use by another process. model.ErrNotFound: an image, a bridge
// or a tap does not exist. On every error nothing runs, and no file but the lock and the serial port's log is left.
func Start(ctx context.Context, s Spec, cgroupDir string) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := checkHost(s); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("start guest %s: %w", s.VMID, err)
	}
	lock, err := lockGuest(s.RunDir, s.VMID)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := clearOld(ctx, s.RunDir, s.VMID, cgroupDir); err != nil {
		return nil, err
	}
	p, err := launch(ctx, s, cgroupDir)
	if err != nil {
		return nil, undo(ctx, s, cgroupDir, err)
	}
	return p, nil
}

// undo kills what a start that went wrong has begun. A cgroup that was there
// before stays: the guard may have put its mark on it.
func undo(ctx context.Context, s Spec, cgroupDir string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := killCgroup(ctx, cgroupDir); err != nil {
		return errors.Join(cause, fmt.Errorf("clean up after it: %w", err))
	}
	if err := removeFiles(s.RunDir, s.VMID); err != nil {
		return errors.Join(cause, err)
	}
	return cause
}

// checkHost refuses early, and with clearer words than QEMU's, what cannot work.
func checkHost(s Spec) error {
	if longest := s.SerialSocket(0); len(longest) >= maxSocketPath {
		return model.Invalidf("run directory", "%s is too long for the path of a socket: use a shorter directory", s.RunDir)
	}
	for _, d := range s.Disks {
		if _, err := os.Stat(d.Path); errors.Is(err, fs.ErrNotExist) {
			return model.Errorf(model.ErrNotFound, "%s: the disk image %s does not exist: restore it, or take %s out of guest %s", d.ID, d.Path, d.ID, s.VMID)
		} else if storage.IsAway(err) {
			return storage.Away("%s: the disk image %s cannot be reached: %v", d.ID, d.Path, err)
		} else if err != nil {
			return model.Errorf(model.ErrUnavailable, "%s: the disk image %s cannot be read: %v", d.ID, d.Path, err)
		}
	}
	for _, n := range s.NICs {
		if n.Bridge == "" {
			continue
		}
		if _, err := net.InterfaceByName(n.Bridge); err != nil {
			return model.Errorf(model.ErrNotFound, "%s: this node has no bridge %s: create it, or change %s of guest %s", n.ID, n.Bridge, n.ID, s.VMID)
		}
		if _, err := net.InterfaceByName(n.Tap); err != nil {
			return model.Errorf(model.ErrNotFound, "%s: the interface %s does not exist: it must be made and put on bridge %s before the guest starts", n.ID, n.Tap, n.Bridge)
		}
	}
	return nil
}

// lockGuest keeps two starts of one guest on this node apart.
func lockGuest(runDir string, id model.VMID) (*os.File, error) {
	lock, err := sys.TryLockFile(runFile(runDir, id, suffixLock))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, model.Errorf(model.ErrBusy, "guest %s is being started or found by another task: try again", id)
	} else if err != nil {
		return nil, fmt.Errorf("start guest %s: %w", id, err)
	}
	return lock, nil
}

// clearOld refuses a second process and removes the traces of an ended one.
func clearOld(ctx context.Context, runDir string, id model.VMID, cgroupDir string) error {
	p, _, err := adopt(ctx, runDir, id)
	if err == nil {
		defer func() { _ = p.Close() }()
		return model.Errorf(model.ErrBusy, "guest %s is running already as process %d", id, p.PID())
	}
	if !errors.Is(err, model.ErrNotFound) {
		return err
	}
	if populated, err := sys.Cgroup(cgroupDir).Populated(); err == nil && populated {
		return model.Errorf(model.ErrBusy, "the cgroup %s of guest %s holds processes that nobody started as this guest: end them first", cgroupDir, id)
	}
	if frozen, err := sys.Cgroup(cgroupDir).Frozen(); err == nil && frozen {
		return model.Errorf(model.ErrUnavailable, "guest %s cannot start: its cgroup is frozen, because this node's lease is over", id)
	}
	return nil
}

func launch(ctx context.Context, s Spec, cgroupDir string) (*Process, error) {
	bootID, err := sys.BootID()
	if err != nil {
		return nil, fmt.Errorf("start guest %s: %w", s.VMID, err)
	}
	st := state{s, Facts{BootID: bootID, Cgroup: cgroupDir, Started: time.Now()}}
	// Written before QEMU runs, so that an agent which dies now finds the half-made start.
	if err := writeState(st); err != nil {
		return nil, err
	}
	if _, err := os.Stat(cgroupDir); err != nil {
		return nil, model.Errorf(model.ErrUnavailable, "guest %s cannot start: its cgroup %s is not there (any more): nobody allows it to run", s.VMID, cgroupDir)
	}
	if err := run(ctx, s, cgroupDir); err != nil {
		return nil, err
	}
	if st.Facts.PID, err = readPID(s.PIDFile()); err != nil {
		return nil, fmt.Errorf("start guest %s: %w", s.VMID, err)
	}
	if st.Facts.StartTicks, err = sys.ProcessStart(st.Facts.PID); err != nil {
		return nil, fmt.Errorf("start guest %s: QEMU ended at once: %w", s.VMID, err)
	}
	if err := writeState(st); err != nil {
		return nil, err
	}
	p, err := watch(s, st.Facts)
	if err != nil {
		return nil, fmt.Errorf("start guest %s: %w", s.VMID, err)
	}
	if _, err := p.QMP(ctx); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("start guest %s: %w", s.VMID, err)
	}
	return p, nil
}

// run executes QEMU and returns when it has gone into the background.
func run(ctx context.Context, s Spec, cgroupDir string) error {
	binary, err := exec.LookPath(Binary)
	if err != nil {
		return notInstalled()
	}
	// A file, because a pipe would be held open by the process in the background.
	stderr, err := os.OpenFile(runFile(s.RunDir, s.VMID, suffixErr), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("start guest %s: %w", s.VMID, err)
	}
	defer stderr.Close()
	// A shell enters the cgroup and becomes QEMU. Not SysProcAttr.CgroupFD: a child that
	// is born into a cgroup which the guard freezes at that moment never reaches its exec,
	// and until it does Go's vfork stops the whole agent, the lease's renewal included.
	argv := append([]string{"-c", `echo 0 >"$0/cgroup.procs" && exec "$@"`, cgroupDir, binary}, Argv(s)...)
	cmd := exec.CommandContext(ctx, "/bin/sh", argv...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return storage.Away("QEMU of guest %s did not come up in time: its storage does not answer, or its cgroup was frozen (%v)", s.VMID, ctx.Err())
	}
	said, readErr := os.ReadFile(stderr.Name())
	if readErr != nil {
		return fmt.Errorf("start guest %s: %w", s.VMID, errors.Join(err, readErr))
	}
	return explain(s, string(said), err)
}

func writeState(st state) error {
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("write state of guest %s: %w", st.Spec.VMID, err)
	}
	path := runFile(st.Spec.RunDir, st.Spec.VMID, suffixState)
	// Renamed into place: an agent that dies meanwhile leaves the old state or the new one.
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write state of guest %s: %w", st.Spec.VMID, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write state of guest %s: %w", st.Spec.VMID, err)
	}
	return nil
}

func readPID(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("read %s: %q is not a process id", path, text)
	}
	return pid, nil
}

// List returns the guests that have a process here, or the traces of one, by id.
// A directory that does not exist holds none.
func List(runDir string) ([]model.VMID, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list guests in %s: %w", runDir, err)
	}
	var ids []model.VMID
	for _, e := range entries {
		if num, ok := strings.CutSuffix(e.Name(), "."+suffixState); ok {
			if id, err := model.ParseVMID(num); err == nil {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Adopt finds the QEMU process of a guest that an earlier agent started. It does
// not talk to QEMU, so it works on a frozen one too. A guest that does not run gives
// model.ErrNotFound; its files and cgroup are removed then, and what a start that was cut short left is killed.
func Adopt(ctx context.Context, runDir string, id model.VMID) (*Process, error) {
	if _, err := os.Stat(filepath.Join(runDir, id.String()+"."+suffixState)); errors.Is(err, fs.ErrNotExist) {
		return nil, notRunning(id)
	}
	lock, err := lockGuest(runDir, id)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	p, group, err := adopt(ctx, runDir, id)
	if errors.Is(err, model.ErrNotFound) && group != "" {
		if err := sys.Cgroup(group).Remove(); err != nil {
			return nil, fmt.Errorf("find guest %s: %w", id, err)
		}
	}
	return p, err
}

func notRunning(id model.VMID) error {
	return model.Errorf(model.ErrNotFound, "guest %s does not run on this node", id)
}

// adopt does Adopt's work; the guest's lock is held. group is the cgroup of a
// guest that does not run any more. It is emptied, and left for the caller to remove.
func adopt(ctx context.Context, runDir string, id model.VMID) (p *Process, group string, err error) {
	text, err := os.ReadFile(runFile(runDir, id, suffixState))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", notRunning(id)
	} else if err != nil {
		return nil, "", fmt.Errorf("find guest %s: %w", id, err)
	}
	var st state
	if err := json.Unmarshal(text, &st); err != nil {
		return nil, "", fmt.Errorf("find guest %s: read its state: %w", id, err)
	}
	st.Spec.RunDir = runDir
	if same, err := identify(&st); err != nil {
		return nil, "", fmt.Errorf("find guest %s: %w", id, err)
	} else if same {
		p, err := watch(st.Spec, st.Facts)
		if err == nil || !errors.Is(err, os.ErrProcessDone) {
			return p, "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := killCgroup(ctx, st.Facts.Cgroup); err != nil {
		return nil, "", fmt.Errorf("find guest %s: end what is left of it: %w", id, err)
	}
	if err := removeFiles(runDir, id); err != nil {
		return nil, "", err
	}
	return nil, st.Facts.Cgroup, notRunning(id)
}

// identify reports whether the process of st still runs, and completes the
// facts of a start whose agent died before it could write them.
func identify(st *state) (bool, error) {
	bootID, err := sys.BootID()
	if err != nil || bootID != st.Facts.BootID {
		return false, err
	}
	if st.Facts.PID == 0 {
		pid, err := readPID(st.Spec.PIDFile())
		if err != nil || !isGuest(pid, st.Spec) {
			return false, nil //nolint:nilerr // no pidfile: QEMU did not get that far
		}
		if st.Facts.StartTicks, err = sys.ProcessStart(pid); err != nil {
			return false, nil //nolint:nilerr // it has ended since
		}
		st.Facts.PID = pid
		return true, writeState(*st)
	}
	ticks, err := sys.ProcessStart(st.Facts.PID)
	if errors.Is(err, os.ErrProcessDone) {
		return false, nil
	}
	return err == nil && ticks == st.Facts.StartTicks, err
}

// isGuest recognises the process by the pidfile it was told to write.
func isGuest(pid int, s Spec) bool {
	args, err := sys.ProcessArgs(pid)
	i := slices.Index(args, "-pidfile")
	return err == nil && i >= 0 && i+1 < len(args) && args[i+1] == s.PIDFile()
}
