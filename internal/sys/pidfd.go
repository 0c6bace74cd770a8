//go:build linux

package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// PidFD refers to one process, which need not be a child. Unlike a number it
// never comes to mean another process. The caller closes it.
type PidFD struct {
	file *os.File
}

// OpenPidFD refers to the process that has the number pid now. A process that
// is gone gives an error with os.ErrProcessDone in its chain.
func OpenPidFD(pid int) (*PidFD, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("open process %d: %w", pid, os.ErrProcessDone)
	} else if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &PidFD{os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))}, nil
}

// Wait returns nil when the process ended, without reaping it, and an error with
// os.ErrClosed in its chain when p was closed. It costs no thread.
func (p *PidFD) Wait() error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	// The descriptor becomes readable when the process ends; asking poll first
	// makes a wake-up without a reason harmless.
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// Ended reports whether the process is gone or a zombie.
func (p *PidFD) Ended() bool {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	return raw.Control(func(fd uintptr) { ended = readable(int(fd)) }) == nil && ended
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// Signal sends sig. A process that has ended gives os.ErrProcessDone.
func (p *PidFD) Signal(sig unix.Signal) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return sent
}

// Close ends a Wait that is going on.
func (p *PidFD) Close() error { return p.file.Close() }
