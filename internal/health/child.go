package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// endWait is how long a child that was told to end is waited for. One that does not hang ends in milliseconds.
const endWait = time.Second

// Child is a process that probes a storage for this one. Make it with [NewChild]. Probe and Close are called by one
// goroutine; they start the process when it is needed and end it.
type Child struct {
	command []string
	lock    string
	running *process
}

// process is one child that was started.
type process struct {
	os      *os.Process
	pidfd   *sys.PidFD
	in      *os.File
	out     *os.File
	answers chan string // closed when there will be no more
	wg      sync.WaitGroup
}

// NewChild probes by command, program first, which calls [Serve]. lock is the path of a file of this storage alone; its
// directory is made.
func NewChild(command []string, lock string) *Child { return &Child{command: command, lock: lock} }

// Probe asks once and waits for the answer, for ever if the storage hangs, until ctx is done. nil: the storage is well. A
// question that ctx ended is over only when the child has answered it; until then only Close may be called.
func (c *Child) Probe(ctx context.Context) error {
	if c.running == nil {
		p, err := start(c.command, c.lock)
		if err != nil {
			return err
		}
		c.running = p
	}
	if _, err := c.running.in.WriteString(question + "\n"); err != nil {
		return c.ended(err)
	}
	select {
	case line, ok := <-c.running.answers:
		if !ok {
			return c.ended(errors.New("it closed its output"))
		}
		return answered(line)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ended says that the child is of no use any more.
func (c *Child) ended(err error) error {
	return errors.Join(model.Errorf(model.ErrUnavailable, "the process that probes the storage ended: %v", err), c.Close())
}

// Close ends the child and waits a second for that. model.ErrBusy: it hangs, and ends when its storage lets it. Until
// then it holds the lock, so no other child can join it. Closing twice is once.
func (c *Child) Close() error {
	p := c.running
	if p == nil {
		return nil
	}
	c.running = nil
	_ = p.in.Close()
	_ = p.os.Kill() // it may have ended already
	over := p.over(endWait)
	_ = p.pidfd.Close()
	_ = p.out.Close() // ends the reader
	p.wg.Wait()
	if !over {
		pid := p.os.Pid
		return errors.Join(model.Errorf(model.ErrBusy, "process %d hangs on its storage", pid), p.os.Release())
	}
	_, err := p.os.Wait() // returns at once; the status of a process that was killed tells nothing
	return err
}

// over waits for the process's end.
func (p *process) over(limit time.Duration) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(limit); !p.pidfd.Ended(); {
		select {
		case <-tick.C:
		case <-late:
			return false
		}
	}
	return true
}

// start runs command, which inherits the lock: it is held as long as the process is there, however this one ends.
func start(command []string, lock string) (_ *process, err error) {
	if err := os.MkdirAll(filepath.Dir(lock), 0o700); err != nil {
		return nil, fmt.Errorf("start the probe: %w", err)
	}
	held, err := sys.TryLockFile(lock)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, model.Errorf(model.ErrUnavailable, "a process that an earlier agent started to probe it still hangs (%s is locked)", lock)
	} else if err != nil {
		return nil, fmt.Errorf("start the probe: %w", err)
	}
	defer held.Close()
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the probe: %w", err)
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("start the probe: %w", err)
	}
	defer theirOut.Close()
	proc, err := os.StartProcess(command[0], command, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{theirIn, theirOut, os.Stderr, held},
		Sys: &syscall.SysProcAttr{Setsid: true}, // what ends this process by the terminal must not end the probe as well
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the probe: %w", err), in.Close(), out.Close())
	}
	pidfd, err := sys.OpenPidFD(proc.Pid)
	if err != nil { // a child that was not waited for is there, so the machine is out of descriptors
		_ = proc.Kill()
		return nil, errors.Join(fmt.Errorf("start the probe: %w", err), in.Close(), out.Close(), proc.Release())
	}
	p := &process{os: proc, pidfd: pidfd, in: in, out: out, answers: make(chan string, 1)}
	p.wg.Go(func() {
		defer close(p.answers)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			select {
			case p.answers <- lines.Text():
			default: // a second answer to one question, and nobody reads them: not one of ours
				return
			}
		}
	})
	return p, nil
}
