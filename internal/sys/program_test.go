package sys_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/sys"
)

func TestAProgramsOutputIsReturned(t *testing.T) {
	out, err := sys.Output(t.Context(), "sh", "-c", "echo yes; echo no >&2")
	if err != nil || string(out) != "yes\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestAProgramThatFailsIsAnErrorWithItsComplaint(t *testing.T) {
	if _, err := sys.Output(t.Context(), "sh", "-c", "echo broken >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: broken") {
		t.Error(err)
	}
	if _, err := sys.Output(t.Context(), "sauh-has-no-such-program"); !errors.Is(err, sys.ErrNoProgram) {
		t.Error(err)
	}
}

func TestAProgramThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := sys.Output(ctx, "sh", "-c", "sleep 100 & sleep 100")
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}
