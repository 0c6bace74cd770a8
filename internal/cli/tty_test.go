package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
)

func TestOnATerminalProgressIsOneLineThatIsRewritten(t *testing.T) {
	var out bytes.Buffer
	p := &progress{w: &out, tty: true}
	p.show(model.MigrationProgress{Phase: "prepare"})
	p.show(model.MigrationProgress{Phase: "copy", Round: 1})
	p.end()
	p.end()
	if diff := cmp.Diff("\rprepare\x1b[K\rcopy, round 1\x1b[K\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

// openPTY returns both ends of a pseudo terminal.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs a pseudo terminal:", err)
	}
	t.Cleanup(func() { master.Close() })
	var unlock int
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, unlock); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs /dev/pts:", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestTheLeaveKeyEndsTheConsoleAndTheTerminalIsAsItWas(t *testing.T) {
	master, slave := openPTY(t)
	settings := func() *unix.Termios {
		s, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := settings()
	near, guest := net.Pipe()
	typed := make(chan string, 1)
	go func() {
		// The guest's first byte shows that the terminal is raw by now.
		_, _ = io.WriteString(guest, "#")
		_, _ = master.WriteString("ls\x03\r\x1dnot this")
		b, _ := io.ReadAll(guest)
		typed <- string(b)
	}()
	var out, errOut bytes.Buffer
	m := &Main{Stdin: slave, Stdout: &out, Stderr: &errOut}
	if err := m.console(t.Context(), near, "n1", 100); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("ls\x03\r", <-typed); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before, settings()); diff != "" {
		t.Error(diff)
	}
	if want := "connected to guest 100 on node n1, Ctrl-] leaves\r\n\r\nleft the console of guest 100\r\n"; errOut.String() != want {
		t.Errorf("got %q, want %q", errOut.String(), want)
	}
}

func TestTheConsoleEndsWhenTheGuestEndsAlthoughNobodyTypes(t *testing.T) {
	r, w, err := os.Pipe() // an input that never ends
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	near, guest := net.Pipe()
	go func() {
		_, _ = io.WriteString(guest, "bye\n")
		_ = guest.Close()
	}()
	var out bytes.Buffer
	m := &Main{Stdin: r, Stdout: &out, Stderr: io.Discard}
	if err := m.console(t.Context(), near, "n1", 100); err != nil || out.String() != "bye\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestTheConsoleEndsWithItsContext(t *testing.T) {
	near, guest := net.Pipe()
	defer guest.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	m := &Main{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}
	if err := m.console(ctx, near, "n1", 100); err != nil {
		t.Errorf("got %v", err)
	}
}
