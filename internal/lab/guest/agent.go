package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/qga"
)

const (
	// agentPort is the name that QEMU gives to the port of the guest agent.
	agentPort = "org.qemu.guest_agent.0"
	// portsDir lists the virtio serial ports; without udev nothing else tells which device has which name.
	portsDir = "/sys/class/virtio-ports"
	// agentIdle is how often the port is looked at while no host is connected to it: reads return at once then. Also
	// how long after the request a fault strikes that ends the guest, so that the request is answered.
	agentIdle = 100 * time.Millisecond
)

// findAgentPort returns the device of the guest agent's port, "" if the machine has none.
func findAgentPort(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*", "name"))
	if err != nil {
		return "", fmt.Errorf("list virtio ports: %w", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("read the name of a virtio port: %w", err)
		}
		if strings.TrimSpace(string(text)) == agentPort {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
		}
	}
	return "", nil
}

// serveAgent answers the guest agent's protocol on its port, if there is one, until ctx is done.
func (g *Guest) serveAgent(ctx context.Context, powerOff func()) error {
	// The driver finds its ports in the background, and a machine without any must not wait for one.
	device := ""
	for range 20 {
		var err error
		if device, err = findAgentPort(portsDir); err != nil {
			return err
		}
		if device != "" || !sleep(ctx, agentIdle) {
			break
		}
	}
	if device == "" {
		return nil
	}
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open port of the guest agent: %w", err)
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })()
	server, first := g.agent(powerOff), make([]byte, 64)
	for {
		// The end of the input says that no host is connected. To wait for one takes no memory: a guest that dirties
		// some all the time would move differently from one that does not.
		n, err := f.Read(first)
		if err == nil {
			err = server.Serve(agentVoice{g, io.MultiReader(bytes.NewReader(first[:n]), f), f})
		}
		if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
			return fmt.Errorf("guest agent: %w", err)
		}
		if !sleep(ctx, agentIdle) {
			return nil
		}
	}
}

// sleep waits for d; false says that ctx is done.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// agent is what the probe guest answers.
func (g *Guest) agent(powerOff func()) *qga.Server {
	return &qga.Server{Version: "sauh-guest", Handlers: map[string]qga.Handler{
		"guest-shutdown": func(json.RawMessage) (any, error) {
			powerOff()
			return nil, qga.ErrNoAnswer
		},
		// No file system that could be frozen: the ledger is written to the bare disk.
		"guest-fsfreeze-status": func(json.RawMessage) (any, error) { return qga.Thawed, nil },
		"guest-get-host-name": func(json.RawMessage) (any, error) {
			return map[string]string{"host-name": g.config.Hostname}, nil
		},
	}}
}

// agentVoice says nothing while the agent is told to be silent.
type agentVoice struct {
	g *Guest
	io.Reader
	w io.Writer
}

func (v agentVoice) Write(b []byte) (int, error) {
	if v.g.silent.Load() {
		return len(b), nil
	}
	return v.w.Write(b)
}

// setAgent makes the guest agent silent or lets it speak: /agent?silent=1.
func (g *Guest) setAgent(w http.ResponseWriter, r *http.Request) {
	silent, err := number(r.URL.Query(), "silent", 0, 0, 1)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.silent.Store(silent == 1)
	g.stats(w, r)
}

// Faults are the ends of a guest that only an init can bring about.
type Faults struct {
	Panic func() error // the kernel panics
	Hang  func() error // nothing in the guest does anything any more
}

// kernelFaults are those of a real guest.
func kernelFaults() Faults {
	return Faults{
		Panic: func() error { return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) },
		// The processors halt, and the machine stays switched on.
		Hang: func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_HALT) },
	}
}

// fault answers and then has f strike.
func (g *Guest) fault(f func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if f == nil {
			http.Error(w, "this guest is no init and cannot do that", http.StatusNotImplemented)
			return
		}
		fmt.Fprintln(w, "now")
		time.AfterFunc(agentIdle, func() {
			if err := f(); err != nil && !errors.Is(err, os.ErrClosed) {
				fmt.Fprintf(os.Stderr, "sauh-guest: %v\n", err)
			}
		})
	}
}
