//go:build linux

package sys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// ErrNoProgram means that a program is not installed.
var ErrNoProgram = errors.New("the program is not installed")

// maxStderr is how much of a program's complaint goes into an error.
const maxStderr = 500

// Output runs argv to its end and returns what it wrote to its standard output. When ctx ends, it and all that it
// started are killed, and the error is that of ctx. A status other than 0 is an error with what it wrote to standard error.
func Output(ctx context.Context, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A child that left the group may hold the pipes; nobody waits for it.
	cmd.WaitDelay = 100 * time.Millisecond
	err := cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", argv[0], context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s: %w", argv[0], ErrNoProgram)
	}
	text := strings.TrimSpace(complaint.String())
	if len(text) > maxStderr {
		text = text[:maxStderr]
	}
	return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text)
}
