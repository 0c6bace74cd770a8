package agent

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/sys"
)

// hostInfo is what this machine is and measures of itself.
type hostInfo struct {
	probed chan struct{} // closed when the search for an accelerator is over, also in vain

	mu      sync.Mutex
	version string // QEMU's; guarded by mu
	accel   qemu.Accel
	// busy and total are /proc/stat's jiffies at the last question; guarded by mu
	busy, total uint64
}

// probeAccel finds out what accelerator really boots something here.
func (h *hostInfo) probeAccel(ctx context.Context, cache string, log *slog.Logger) {
	defer close(h.probed)
	accel, err := qemu.ProbeAccel(ctx, cache)
	if err != nil {
		log.Error("no accelerator works: guests cannot be started here", "err", err)
		return
	}
	log.Info("accelerator found", "accel", accel.Name, "reason", accel.Reason)
	h.mu.Lock()
	h.accel = accel
	h.mu.Unlock()
}

// awaitAccel returns when the search for an accelerator is over. It takes some seconds after an agent's start, which is
// when the guests of a node that was reset are to be started.
func (h *hostInfo) awaitAccel(ctx context.Context) error {
	select {
	case <-h.probed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for an accelerator to be found: %w", ctx.Err())
	}
}

// setVersion notes QEMU's version; without one no guest can be started here.
func (h *hostInfo) setVersion(v string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.version = v
	}
}

// qemu returns the accelerator and QEMU's version, or why no guest can run here.
func (h *hostInfo) qemu() (qemu.Accel, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.version == "" {
		return h.accel, "", model.Errorf(model.ErrUnavailable, "qemu-system-x86_64 is not installed on this node")
	}
	if h.accel.Name == "" {
		return h.accel, h.version, model.Errorf(model.ErrUnavailable, "this node has not found a working accelerator yet: try again in a few seconds, or look at the agent's log")
	}
	return h.accel, h.version, nil
}

// qemuVersion is QEMU's, "unknown" if no guest can run here.
func (h *hostInfo) qemuVersion() string {
	_, v, err := h.qemu()
	if err != nil {
		return "unknown"
	}
	return v
}

// describe fills in what a node's record says of the machine.
func (h *hostInfo) describe(n *model.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n.CPUs, n.QEMU, n.Accel = runtime.NumCPU(), h.version, h.accel.Name
	if total, _, err := memory(); err == nil {
		n.MemoryMiB = total >> 20
	}
	if uuid, err := sys.SystemUUID(); err == nil {
		n.UUID = uuid
	}
}

func (h *hostInfo) info() (api.NodeInfo, error) {
	total, available, err := memory()
	if err != nil {
		return api.NodeInfo{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return api.NodeInfo{
		UptimeSec: int64(sys.BootTime().Seconds()), CPU: h.cpuLocked(), CPUs: runtime.NumCPU(),
		MemoryTotal: total, MemoryUsed: total - available,
		QEMU: h.version, Accel: h.accel.Name, AccelReason: h.accel.Reason,
	}, nil
}

// cpuLocked returns the busy fraction of all cores since the last question.
func (h *hostInfo) cpuLocked() float64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var busy, total uint64
	for i, f := range strings.Fields(line)[1:] {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil || i > 7 { // guest time is in user time already
			break
		}
		total += v
		if i != 3 && i != 4 { // idle, iowait
			busy += v
		}
	}
	db, dt := busy-h.busy, total-h.total
	h.busy, h.total = busy, total
	if dt == 0 {
		return 0
	}
	return float64(db) / float64(dt)
}

// memory returns the machine's total and available bytes.
func memory() (total, available int64, err error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("measure memory: %w", err)
	}
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			available = kib << 10
		}
	}
	return total, available, nil
}
