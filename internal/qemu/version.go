package qemu

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

var (
	versionText = regexp.MustCompile(`version (\d+\.\d+\.\d+)`)
	aliasOf     = regexp.MustCompile(`\(alias of (\S+)\)`)
	pveSuffix   = regexp.MustCompile(`\+pve\d+$`)
)

// QEMUVersion returns the version of this node's QEMU, "10.0.2". Without QEMU
// the error satisfies errors.Is(err, model.ErrUnavailable).
func QEMUVersion(ctx context.Context) (string, error) { //nolint:revive // qemu.Version would read as this package's
	out, err := ask(ctx, "--version")
	if err != nil {
		return "", err
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return "", model.Errorf(model.ErrUnavailable, "%s --version prints no version: %.80q", Binary, out)
	}
	return string(m[1]), nil
}

// ask runs QEMU for what it prints.
func ask(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, Binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, notInstalled()
	}
	if err != nil {
		return nil, model.Errorf(model.ErrUnavailable, "%s %s: %v %s", Binary, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

func notInstalled() error {
	return model.Errorf(model.ErrUnavailable, "%s is not installed on this node: install qemu-system-x86", Binary)
}

// ResolveMachine returns the versioned machine type that name means to this
// node's QEMU: "pc" is "pc-i440fx-10.0" on QEMU 10.0. A version that this QEMU does not
// have is refused, so the target of a migration can ask for the source's. Proxmox VE's own
// suffix ("+pve1") is dropped.
func ResolveMachine(ctx context.Context, name string) (string, error) {
	out, err := ask(ctx, "-machine", "help")
	if err != nil {
		return "", err
	}
	return resolveMachine(string(out), name)
}

func resolveMachine(help, name string) (string, error) {
	want := pveSuffix.ReplaceAllString(name, "")
	for line := range strings.Lines(help) {
		if fields := strings.Fields(line); len(fields) == 0 || fields[0] != want {
			continue
		}
		if m := aliasOf.FindStringSubmatch(line); m != nil {
			return m[1], nil
		}
		return want, nil
	}
	return "", model.Invalidf("machine", "this node's QEMU has no machine type %q: use pc, q35, or a version that %s -machine help lists", name, Binary)
}

// SupportsMigration returns nil if a guest can be moved while it runs under
// this accelerator and QEMU version, and the reason why not otherwise.
func SupportsMigration(accel, version string) error {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return model.Errorf(model.ErrInvalid, "%q is not a version of QEMU", version)
	}
	if accel == TCG && n < 8 {
		return model.Errorf(model.ErrInvalid, "QEMU %s without KVM corrupts a guest's memory when it moves while running: install QEMU 8 or later, or move the guest while it is off", version)
	}
	return nil
}

// KnowsCPU refuses a CPU model that this node's QEMU does not list. Where it cannot be asked, any name is taken.
func KnowsCPU(ctx context.Context, c pveconf.CPU) error {
	out, err := ask(ctx, "-cpu", "help")
	if err != nil || c.Type == "" {
		return nil //nolint:nilerr // the start will tell
	}
	name, _, _ := strings.Cut(expandCPU(c.Type), ",")
	if !knowsCPU(string(out), name) {
		return model.Invalidf("cpu", "this node's QEMU has no CPU model %q: use %s, host, max, or one that %s -cpu help lists", c.Type, defaultCPU, Binary)
	}
	return nil
}

// knowsCPU looks a model up in the first of the two lists that QEMU prints; newer versions print no architecture before it.
func knowsCPU(help, name string) bool {
	models, _, _ := strings.Cut(help, "Recognized CPUID flags")
	for line := range strings.Lines(models) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "x86 "))
		if len(fields) > 0 && fields[0] == name {
			return true
		}
	}
	return false
}

// defaultCPU is Proxmox VE's default for new guests. Every 64-bit processor since
// about 2010 has it, and TCG does too, so a guest can move between unlike nodes.
const defaultCPU = "x86-64-v2-AES"

// CPUModel returns QEMU's -cpu for a configured model under an accelerator.
func CPUModel(accel string, c pveconf.CPU) (string, error) {
	typ := c.Type
	if typ == "" {
		typ = defaultCPU
	}
	if typ == "host" && accel != KVM {
		return "", model.Invalidf("cpu", "the model host needs KVM, which does not work here: use max, or %s", defaultCPU)
	}
	typ = expandCPU(typ)
	for _, f := range c.Flags {
		typ += "," + f
	}
	if accel == KVM {
		// Refuse a node that lacks a feature instead of taking it from the guest on its next move.
		typ += ",enforce"
	}
	return typ, nil
}

// expandCPU spells out the models that are Proxmox VE's own, as its manual defines them.
func expandCPU(typ string) string {
	const v2 = "qemu64,+popcnt,+pni,+sse4.1,+sse4.2,+ssse3"
	const v3 = v2 + ",+aes,+avx,+avx2,+bmi1,+bmi2,+f16c,+fma,+abm,+movbe,+xsave"
	switch typ {
	case "x86-64-v2":
		return v2
	case "x86-64-v2-AES":
		return v2 + ",+aes"
	case "x86-64-v3":
		return v3
	case "x86-64-v4":
		return v3 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
	}
	return typ
}
