package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// upTimeout bounds how long a room may take to come up: all nodes boot at once, in about a second.
const upTimeout = 60 * time.Second

// Up builds a room and returns when all its nodes have booted and started their
// units. It needs root. model.ErrExists: there is such a room. When it fails,
// nothing is left behind. The room lives on when this process ends.
func Up(ctx context.Context, c Config) (*Room, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	if err := checkHost(c); err != nil {
		return nil, err
	}
	root, err := sys.Cgroup2Root()
	if err != nil {
		return nil, err
	}
	r := &Room{name: c.Name, dir: c.Dir, cgroup: filepath.Join(root, cgroupName(c.Name))}
	if exists(r.cgroup) {
		return nil, model.Errorf(model.ErrExists, "room %q already exists: look at it with `sauh lab status --name %s` or remove it with `sauh lab down --name %s`", c.Name, c.Name, c.Name)
	}
	hadData, err := checkDir(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := r.start(ctx, c); err != nil {
		if errors.Is(err, model.ErrExists) {
			return nil, err // another up was faster: leave its room alone
		}
		_, downErr := r.Down(context.WithoutCancel(ctx), hadData)
		return nil, errors.Join(fmt.Errorf("start room %q: %w", c.Name, err), downErr)
	}
	return r, nil
}

// checkHost refuses a machine that cannot hold a room, naming what it lacks.
func checkHost(c Config) error {
	if err := needRoot(); err != nil {
		return err
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return errors.New("the program nft is missing: install it with `apt install nftables`")
	}
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for _, name := range []string{"overlay", "fuse", "cgroup2"} {
		if !strings.Contains(string(text), "\t"+name+"\n") {
			return fmt.Errorf("this kernel has no %s file system: load it with `modprobe %s`", name, name)
		}
	}
	if fi, err := os.Stat(c.Binary); err != nil || !fi.Mode().IsRegular() {
		return model.Invalidf("binary", "%s is not a program", c.Binary)
	}
	return nil
}

// checkDir says whether dir holds the data of an earlier room; it refuses a
// directory with anything else in it, because Down removes it.
func checkDir(dir string) (hadData bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if len(entries) > 0 && !exists(configPath(dir)) {
		return false, model.Invalidf("dir", "%s is not empty and holds no room: name another directory", dir)
	}
	return len(entries) > 0, nil
}

// start makes the directories and the cgroup and starts the supervisor.
func (r *Room) start(ctx context.Context, c Config) error {
	if err := sys.MakeCgroup(r.cgroup); errors.Is(err, fs.ErrExist) {
		return model.Errorf(model.ErrExists, "room %q already exists", c.Name)
	} else if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := writeJSON(pointerPath(c.Name), pointer{Dir: c.Dir, Cgroup: r.cgroup}); err != nil {
		return err
	}
	if err := r.prepareDir(c); err != nil {
		return err
	}
	supervisor := filepath.Join(r.cgroup, RoomName, "supervisor")
	if err := os.MkdirAll(supervisor, 0o755); err != nil {
		return err
	}
	cgroup, err := os.Open(supervisor)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	return r.supervise(ctx, cgroup)
}

// supervise starts the supervisor and waits until it says that it is ready.
func (r *Room) supervise(ctx context.Context, cgroup *os.File) error {
	logFile, err := os.OpenFile(logPath(r.dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	// No context: the room outlives the caller's.
	cmd := exec.Command(binaryPath(r.dir), "lab", "internal", "room", r.dir) //nolint:noctx // it lives on
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{readyW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
	}
	err = cmd.Start()
	_ = readyW.Close()
	if err != nil {
		return err
	}
	r.started = cmd.Process
	return waitReady(ctx, ready, upTimeout, "the supervisor ended, see "+logPath(r.dir))
}

// waitReady reads "ok" or a sentence about what went wrong from a pipe whose other end is a child.
func waitReady(ctx context.Context, pipe *os.File, timeout time.Duration, silent string) error {
	_ = pipe.SetReadDeadline(time.Now().Add(timeout))
	defer context.AfterFunc(ctx, func() { _ = pipe.SetReadDeadline(time.Unix(1, 0)) })()
	text, err := io.ReadAll(pipe)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("not ready after %v", timeout)
	case err != nil:
		return err
	case string(text) == "ok":
		return nil
	case len(text) == 0:
		return errors.New(silent)
	}
	return errors.New(string(text))
}

func (r *Room) prepareDir(c Config) error {
	// First the mark of a room, so that Down knows the directory however far this gets.
	if err := writeJSON(configPath(r.dir), c); err != nil {
		return err
	}
	for _, dir := range []string{nasPath(r.dir), nodesPath(r.dir), runPath(r.dir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// A copy, so that a new build does not change a room that runs.
	if err := copyFile(binaryPath(r.dir), c.Binary, 0o755); err != nil {
		return fmt.Errorf("copy %s: %w", c.Binary, err)
	}
	for i := range c.Nodes {
		if err := r.prepareNode(i + 1); err != nil {
			return err
		}
	}
	return nil
}

// agentConfig is what an installer writes to /etc/sauh/agent.json.
type agentConfig struct {
	Node    string `json:"node"`
	Mgmt    string `json:"mgmt"`
	Cluster string `json:"cluster"`
	Bridge  string `json:"bridge"`
}

func (r *Room) prepareNode(i int) error {
	dir := filepath.Join(nodesPath(r.dir), NodeName(i))
	for _, d := range []string{"lib", "log", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, "etc", "agent.json")
	if exists(file) {
		return nil
	}
	return writeJSON(file, agentConfig{Node: NodeName(i), Mgmt: MgmtAddress(i), Cluster: ClusterAddress(i), Bridge: "vmbr0"})
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func copyFile(dst, src string, mode fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	// A child forked now by another goroutine would keep the file open for writing until its own exec, and the kernel
	// executes no such file ("text file busy").
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	// Written beside and renamed: the old copy may still be running somewhere.
	out, err := os.OpenFile(dst+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(dst+".new", dst)
}
