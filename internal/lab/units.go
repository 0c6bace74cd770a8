package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/sys"
)

// restartDelay is RestartSec=1 of the units as they are installed.
const restartDelay = time.Second

const logDir = "/var/log/sauh"

// units runs a node's services as systemd would: each in a session and a cgroup
// of its own, with its output in /var/log/sauh; what a service leaves behind in
// its cgroup is killed when its main process ends, unless it has KeepRest.
type units struct {
	list   []Unit
	reaper *sys.Reaper
	log    *log.Logger
	// first has the end of each unit's first process, in the order of list.
	first []<-chan unix.WaitStatus

	mu       sync.Mutex
	main     map[string]mainProcess // by unit; guarded by mu
	stopping bool                   // nothing is started again; guarded by mu
}

// mainProcess is what a unit runs.
type mainProcess struct {
	pid   int
	ended chan struct{} // closed when it ended
}

func startUnits(list []Unit, r *sys.Reaper) (*units, error) {
	f, err := openLog("init")
	if err != nil {
		return nil, err
	}
	u := &units{list: list, reaper: r, main: map[string]mainProcess{}, log: log.New(f, "", log.LstdFlags|log.Lmicroseconds)}
	for _, unit := range list {
		ch, err := u.start(unit)
		if err != nil {
			return nil, err
		}
		u.first = append(u.first, ch)
	}
	return u, nil
}

func openLog(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(logDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// run reaps and restarts until ctx is done; the machine usually ends first.
func (u *units) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i, unit := range u.list {
		wg.Go(func() { u.watch(ctx, unit, u.first[i]) })
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(asked)
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case sig := <-asked:
			u.end(sig == unix.SIGINT)
		}
	})
	u.reaper.Run(ctx)
	wg.Wait()
	return ctx.Err()
}

// stopTimeout is how long a unit may take to end; the guard has the longest by its unit file.
const stopTimeout = 60 * time.Second

// end stops the units in the reverse of their order, as systemd would, and then the machine: SIGTERM switches it off, SIGINT reboots it.
func (u *units) end(reboot bool) {
	u.mu.Lock()
	u.stopping = true
	u.mu.Unlock()
	for _, unit := range slices.Backward(u.list) {
		u.mu.Lock()
		main := u.main[unit.Name]
		u.mu.Unlock()
		if main.pid == 0 {
			continue
		}
		u.log.Printf("%s is stopped", unit.Name)
		_ = unix.Kill(main.pid, unix.SIGTERM) // it may have ended already
		select {
		case <-main.ended:
		case <-time.After(stopTimeout):
			u.log.Printf("%s did not stop within %v", unit.Name, stopTimeout)
		}
	}
	u.log.Printf("the machine goes down: %v", sys.EndMachine(reboot))
}

// over notes the end of a unit's main process, and reports whether the unit is to be started again.
func (u *units) over(unit Unit) (again bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if main, ok := u.main[unit.Name]; ok {
		close(main.ended)
		delete(u.main, unit.Name)
	}
	return unit.Restart && !u.stopping
}

// watch follows one unit from end to restart.
func (u *units) watch(ctx context.Context, unit Unit, ended <-chan unix.WaitStatus) {
	for {
		select {
		case <-ctx.Done():
			return
		case st := <-ended:
			u.log.Printf("%s ended: %s", unit.Name, describe(st))
		}
		again := u.over(unit)
		if !unit.KeepRest {
			if err := clearUnit(ctx, sys.Cgroup(unitCgroup(unit))); err != nil {
				u.log.Printf("clear the rest of %s: %v", unit.Name, err)
			}
		}
		if !again {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(restartDelay):
		}
		if u.isStopping() {
			return
		}
		next, err := u.start(unit)
		if err != nil {
			u.log.Printf("start %s again: %v", unit.Name, err)
			next = replay(unix.WaitStatus(1 << 8)) // exit status 1: try again after the delay
		}
		ended = next
	}
}

func (u *units) isStopping() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stopping
}

// clearUnit kills what a unit left in its cgroup and removes the cgroup. It must
// not be used again: Linux 6.18 kills at once a process that is cloned between
// cgroups (CLONE_INTO_CGROUP) of which one has seen cgroup.kill and the other has not,
// which is how start puts a unit into its cgroup.
func clearUnit(ctx context.Context, cgroup sys.Cgroup) error {
	if err := cgroup.Kill(); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := cgroup.WaitEmpty(ctx); err != nil {
		return err
	}
	return cgroup.Remove()
}

func describe(st unix.WaitStatus) string {
	if st.Signaled() {
		return fmt.Sprintf("killed by signal %d", st.Signal())
	}
	return fmt.Sprintf("exit status %d", st.ExitStatus())
}

func unitCgroup(unit Unit) string {
	return filepath.Join(roomCgroups, systemSlice, unit.Name+".service")
}

func (u *units) start(unit Unit) (<-chan unix.WaitStatus, error) {
	path, err := exec.LookPath(unit.Argv[0])
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", unit.Name, err)
	}
	if err := os.MkdirAll(unitCgroup(unit), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", unit.Name, err)
	}
	cgroup, err := os.Open(unitCgroup(unit))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", unit.Name, err)
	}
	defer cgroup.Close()
	out, err := openLog(unit.Name)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", unit.Name, err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", unit.Name, err)
	}
	defer null.Close()
	pid, ended, err := u.reaper.Start(path, unit.Argv, &os.ProcAttr{
		Dir: "/", Env: initEnvironment(), Files: []*os.File{null, out, out},
		Sys: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", unit.Name, err)
	}
	u.mu.Lock()
	u.main[unit.Name] = mainProcess{pid, make(chan struct{})}
	u.mu.Unlock()
	u.log.Printf("%s started, pid %d", unit.Name, pid)
	return ended, nil
}
