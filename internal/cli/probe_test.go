package cli

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/lab/probe"
)

// execute runs a command and returns what it printed.
func execute(ctx context.Context, cmd *cobra.Command, args ...string) (string, error) {
	var out bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

func TestAProbeWritesItsFileUntilItIsStopped(t *testing.T) {
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file := filepath.Join(t.TempDir(), "echo.jsonl")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := execute(ctx, ProbeCommand(), "echo", "--target", conn.LocalAddr().String(), "--out", file, "--timeout", "10ms"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if !strings.HasPrefix(lines[0], `{"kind":"start","probe":"echo"`) || !strings.HasPrefix(lines[len(lines)-1], `{"kind":"summary"`) {
		t.Errorf("first line %s\nlast line %s", lines[0], lines[len(lines)-1])
	}
	series, err := probe.ReadEcho(bytes.NewReader(text))
	if err != nil || len(series) < 3 {
		t.Errorf("%d samples, %v", len(series), err)
	}
}

func TestBadFlagsOfProbesAndImagesSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		cmd  *cobra.Command
		args []string
		want string
	}{
		"no target":     {ProbeCommand(), []string{"echo"}, "target"},
		"no history":    {ProbeCommand(), []string{"verify", "--target", "127.0.0.1"}, "requires at least 1 arg"},
		"lost history":  {ProbeCommand(), []string{"verify", "--target", "127.0.0.1", dir + "/none"}, "none"},
		"no image file": {ImageCommand(), []string{"build"}, "out"},
		"no guest":      {ImageCommand(), []string{"build", "--out", dir + "/x"}, "go build ./cmd/sauh-guest"},
		"bad address":   {ImageCommand(), []string{"build", "--out", dir + "/x", "--ip", "10.0.0.1"}, "such as 10.10.1.100/24"},
		"bad gateway":   {ImageCommand(), []string{"build", "--out", dir + "/x", "--ip", "10.0.0.1/24", "--gateway", "x"}, "--gateway x"},
		"bad host name": {ImageCommand(), []string{"build", "--out", dir + "/x", "--ip", "10.0.0.1/24", "--hostname", "A B"}, "lower-case"},
	} {
		if _, err := execute(t.Context(), c.cmd, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if _, err := os.Stat(dir + "/x"); err == nil {
		t.Error("a file was left behind")
	}
}
