//go:build linux

package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper starts children and collects the status of every child of the process,
// as pid 1 of a pid namespace must: children that it did not start, handed down
// by processes that died, are collected silently.
//
// A process with a Reaper must not wait for children in any other way (os/exec).
type Reaper struct {
	mu sync.Mutex
	// waiting has a channel for each child started and not yet collected.
	waiting map[int]chan unix.WaitStatus
}

// NewReaper returns a Reaper; nothing is collected until Run.
func NewReaper() *Reaper { return &Reaper{waiting: map[int]chan unix.WaitStatus{}} }

// Start starts a child. Its status is sent once to ended, which has room for it.
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (pid int, ended <-chan unix.WaitStatus, err error) {
	// Under the lock, so that Run cannot collect the child before it is known.
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan unix.WaitStatus, 1)
	r.waiting[p.Pid] = ch
	pid = p.Pid
	return pid, ch, p.Release()
}

// Run collects children until ctx is done.
func (r *Reaper) Run(ctx context.Context) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	defer signal.Stop(ch)
	for {
		r.collect()
		select {
		case <-ctx.Done():
			return
		case <-ch:
		}
	}
}

func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
		if ch := r.waiting[pid]; ch != nil {
			ch <- st
			delete(r.waiting, pid)
		}
	}
}

// Output runs a program to its end with input on its standard input and
// returns what it wrote. A status other than 0 is an error that carries it.
func (r *Reaper) Output(path string, argv []string, input string) (string, error) {
	in, err := memFile("input", input)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := memFile("output", "")
	if err != nil {
		return "", err
	}
	defer out.Close()
	_, ended, err := r.Start(path, argv, &os.ProcAttr{Files: []*os.File{in, out, out}, Env: os.Environ()})
	if err != nil {
		return "", err
	}
	st := <-ended
	buf := make([]byte, 64<<10)
	n, _ := out.ReadAt(buf, 0)
	if st.ExitStatus() != 0 {
		return string(buf[:n]), fmt.Errorf("%s: exit status %d: %s", argv[0], st.ExitStatus(), buf[:n])
	}
	return string(buf[:n]), nil
}

func memFile(name, content string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteString(content); err != nil {
		_ = f.Close()
		return nil, err
	}
	_, err = f.Seek(0, 0)
	return f, err
}
