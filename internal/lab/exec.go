package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/sys"
)

// RunIn runs argv in a node, or in the room itself for RoomName, with this
// process's standard streams and terminal, and returns its exit status as a
// shell counts it: 127 if there is no such program, 128 + n if signal n ended
// it. Signals that ask this process to end kill the program.
func (r *Room) RunIn(ctx context.Context, node string, argv []string) (int, error) {
	return runIn(ctx, r.dir, node, argv)
}

func runIn(ctx context.Context, dir, node string, argv []string) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("exec: no command: write `sauh lab exec NODE -- COMMAND`")
	}
	resp, files, err := call(ctx, dir, request{Op: "exec", Node: node})
	if err == nil {
		err = resp.err()
	}
	if err != nil {
		sys.CloseAll(files)
		return 0, err
	}
	defer sys.CloseAll(files)
	type result struct {
		code int
		err  error
	}
	done := make(chan result)
	go func() { // a goroutine of its own, because its thread stays in the node
		path := nodePath
		if node == RoomName {
			path = dir + ":" + nodePath // its sauh has no place in the host's directories
		}
		code, err := runInside(ctx, files, path, argv)
		done <- result{code, err}
	}()
	res := <-done
	return res.code, res.err
}

// runInside expects the node's namespaces and, last, the cgroup for the program.
// It changes only PATH in the environment.
func runInside(ctx context.Context, files []*os.File, searchPath string, argv []string) (int, error) {
	namespaces, cgroup := files[:len(files)-1], files[len(files)-1]
	if err := sys.EnterNamespaces(namespaces); err != nil {
		return 0, err
	}
	// The search happens inside, on this thread.
	path, err := lookPath(searchPath, argv[0])
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "%s: command not found\n", argv[0])
		return 127, nil
	} else if err != nil {
		return 126, err
	}
	p, err := os.StartProcess(path, argv, &os.ProcAttr{
		Dir: "/", Env: withPath(os.Environ(), searchPath),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())},
	})
	if err != nil {
		return 126, fmt.Errorf("start %s: %w", argv[0], err)
	}
	signals := make(chan os.Signal, 4)
	// The terminal sends SIGINT and SIGQUIT to the program too: here they are only survived.
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		killOn(ctx, p, signals, ended)
	}()
	st, err := p.Wait()
	close(ended)
	<-stopped
	if err != nil {
		return 0, fmt.Errorf("wait for %s: %w", argv[0], err)
	}
	return shellStatus(st.Sys().(syscall.WaitStatus)), nil
}

// withPath replaces PATH in an environment. Of two, C programs take the first.
func withPath(env []string, path string) []string {
	env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	return append(env, "PATH="+path)
}

// lookPath finds a program as a shell with that PATH would.
func lookPath(searchPath, name string) (string, error) {
	if strings.Contains(name, "/") {
		return exec.LookPath(name)
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

func killOn(ctx context.Context, p *os.Process, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case s := <-signals:
			if s == unix.SIGTERM || s == unix.SIGHUP {
				_ = p.Kill()
			}
		case <-ctx.Done():
			_ = p.Kill()
			<-ended
			return
		}
	}
}

func shellStatus(st syscall.WaitStatus) int {
	if st.Signaled() {
		return 128 + int(st.Signal())
	}
	return st.ExitStatus()
}
