package qemu

import (
	"bytes"
	"context"
	_ "embed" // the probe's boot disk
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/sys"
)

// probeDisk boots, does what a kernel does in its first tenth of a second and
// ends QEMU; its source is probe/boot.asm.
//
//go:embed probe/boot.bin
var probeDisk []byte

// Limits of the probe. With working hardware, and under TCG, it is over in 0.2 s on an idle machine.
// TCG gets more time because a node that is starting is busy, and nothing comes after it.
const (
	kvmProbeTimeout = 5 * time.Second
	tcgProbeTimeout = 20 * time.Second
	probeDiskSize   = 16 << 20 // the firmware wants a disk with at least one cylinder
	probePassed     = 33       // QEMU's status for 0x10 on the exit port: 2·0x10+1
)

// Accel is the accelerator that works on this node, and why.
type Accel struct {
	Name   string `json:"name"`   // KVM or TCG
	Reason string `json:"reason"` // a sentence
}

// accelCache is what a probe found, and for what.
type accelCache struct {
	QEMU   string `json:"qemu"`
	Kernel string `json:"kernel"`
	BootID string `json:"boot_id"`
	Accel  Accel  `json:"accel"`
}

// ProbeAccel finds out which accelerator works, by booting a tiny disk with it:
// /dev/kvm can be opened on machines where no ordinary guest boots. The answer is kept in
// runDir until QEMU's version or the kernel's changes; that KVM does not work is believed until the
// next boot only, because an overloaded machine looks the same. It takes up to five seconds for KVM and, where that
// does not work, usually 0.2 s more. If not even TCG boots the error satisfies model.ErrUnavailable.
func ProbeAccel(ctx context.Context, runDir string) (Accel, error) {
	version, err := QEMUVersion(ctx)
	if err != nil {
		return Accel{}, err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", err)
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", err)
	}
	bootID, err := sys.BootID()
	if err != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", err)
	}
	want := accelCache{QEMU: version, Kernel: strings.TrimSpace(string(kernel)), BootID: bootID}
	path := filepath.Join(runDir, "accel.cache")
	if a, ok := cachedAccel(path, want); ok {
		return a, nil
	}
	if want.Accel, err = probe(ctx, runDir); err != nil {
		return Accel{}, err
	}
	text, err := json.Marshal(want)
	if err != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", err)
	}
	return want.Accel, nil
}

// cachedAccel returns a former answer if it still holds.
func cachedAccel(path string, want accelCache) (Accel, bool) {
	var have accelCache
	text, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(text, &have) != nil || have.QEMU != want.QEMU || have.Kernel != want.Kernel {
		return Accel{}, false
	}
	_, err = os.Stat("/dev/kvm")
	if have.Accel.Name == KVM {
		return have.Accel, err == nil
	}
	// /dev/kvm may have come since.
	return have.Accel, have.BootID == want.BootID && strings.Contains(have.Accel.Reason, noKVM) == (err != nil)
}

const noKVM = "/dev/kvm does not exist"

func probe(ctx context.Context, runDir string) (Accel, error) {
	dir, err := os.MkdirTemp(runDir, "probe-")
	if err != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	reason := noKVM
	if _, err := os.Stat("/dev/kvm"); !errors.Is(err, fs.ErrNotExist) {
		if reason = boots(ctx, dir, KVM, kvmProbeTimeout); reason == "" {
			return Accel{KVM, "a probe guest booted with KVM"}, nil
		}
	}
	if ctx.Err() != nil {
		return Accel{}, fmt.Errorf("probe acceleration: %w", ctx.Err())
	}
	if why := boots(ctx, dir, TCG, tcgProbeTimeout); why != "" {
		return Accel{}, model.Errorf(model.ErrUnavailable, "no guest boots on this node: with KVM: %s; with TCG: %s", reason, why)
	}
	return Accel{TCG, "KVM cannot be used: " + reason}, nil
}

// boots runs the probe's disk and returns "" if it got through, or why it did not.
func boots(ctx context.Context, dir, accel string, limit time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	disk, said := filepath.Join(dir, accel+".raw"), filepath.Join(dir, accel+".out")
	if err := errors.Join(os.WriteFile(disk, probeDisk, 0o600), os.Truncate(disk, probeDiskSize)); err != nil {
		return err.Error()
	}
	cmd := exec.CommandContext(ctx, Binary,
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-accel", accel, "-m", "size=64M", "-boot", "strict=on",
		"-chardev", "file,id=said,path="+escape(said), "-device", "isa-debugcon,iobase=0xe9,chardev=said",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-blockdev", asJSON(node{Driver: "file", Name: "disk", Filename: disk, Discard: "ignore"}),
		"-blockdev", asJSON(node{Driver: string(storage.Raw), Name: "fmt", File: "disk", Discard: "ignore"}),
		"-device", "virtio-blk-pci,drive=fmt,bootindex=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	// An agent that dies takes its probe along. The kernel ties that to the thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	steps, readErr := os.ReadFile(said)
	if readErr != nil {
		steps = nil
	}
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == probePassed && string(steps) == "SPLXW" {
		return ""
	}
	if ctx.Err() != nil {
		return fmt.Sprintf("a probe guest %s within %s", reached(string(steps)), limit)
	}
	return fmt.Sprintf("a probe guest %s: %v %s", reached(string(steps)), err, lastComplaint(stderr.String()))
}

// reached says in words how far the probe's disk got.
func reached(steps string) string {
	switch {
	case strings.Contains(steps, "W"):
		return "did everything and did not end"
	case strings.Contains(steps, "X"):
		return "reached 64-bit mode, where the processor is too slow to be of use, and was not through"
	case strings.Contains(steps, "L"):
		return "reached 64-bit mode and did not return from its first exception"
	case strings.Contains(steps, "P"):
		return "reached 32-bit mode and did not get into 64-bit mode"
	case strings.Contains(steps, "S"):
		return "read its disk and did not get into 32-bit mode"
	}
	return "did not get as far as reading its disk"
}
