package sys

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// StartHolder starts argv, program first, in a session of its own with file as its descriptor
// 3 and this process's standard error. The caller waits for it.
func StartHolder(argv []string, file *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer null.Close()
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: []*os.File{null, null, os.Stderr, file},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return p, nil
}

// IgnoreSignals makes this process deaf to the signals that ask a process to end.
func IgnoreSignals() { signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP) }
