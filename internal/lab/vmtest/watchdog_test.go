//go:build room

package vmtest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/lab/image"
)

// line is what the machine said at a time of its own.
type line struct {
	at   time.Duration
	text string
}

// build makes the static programs and the initramfs.
func build(t *testing.T, module string) (kernel, initrd string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal("needs the program qemu-system-x86_64: run scripts/setup.sh")
	}
	dir := t.TempDir()
	programs := map[string]string{}
	for name, pkg := range map[string]string{"sauh": "sauh.dev/sauh/cmd/sauh", "init": "sauh.dev/sauh/internal/lab/vmtest/init"} {
		programs[name] = filepath.Join(dir, name)
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", programs[name], pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, out)
		}
	}
	kernel, initrd, err := image.Direct(t.Context(), dir, image.DirectOptions{
		Kernel: image.StandardKernel, Modules: []string{"watchdog", module}, Init: programs["init"],
		Programs: map[string]string{"sauh": programs["sauh"]},
	})
	if err != nil {
		t.Fatal(err)
	}
	return kernel, initrd
}

// boot runs a machine with a watchdog's driver until it powers itself off, and returns what it said over all its boots.
func boot(t *testing.T, scenario, module string, options ...string) []line {
	t.Helper()
	kernel, initrd := build(t, module)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", append(options,
		"-accel", "tcg", "-machine", "pc", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet loglevel=3 panic=1 mitigations=off no_timer_check rdinit=/init scenario="+scenario,
		"-serial", "stdio", "-device", "i6300esb", "-action", "watchdog=reset")...)
	cmd.Stdout, cmd.Stderr = write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	stop := time.AfterFunc(4*time.Minute, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	var said []line
	in := bufio.NewScanner(read)
	for in.Scan() {
		t.Log(in.Text())
		if l, err := parse(in.Text()); err == nil {
			said = append(said, l)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("QEMU: %v", err)
	}
	return said
}

func parse(s string) (line, error) {
	_, rest, ok := strings.Cut(s, "VM ")
	number, text, _ := strings.Cut(rest, " ")
	ms, err := strconv.Atoi(number)
	if !ok || err != nil {
		return line{}, errors.New("no line of init")
	}
	return line{time.Duration(ms) * time.Millisecond, strings.TrimSpace(text)}, nil
}

// find is the index of the first line that begins so, or the end of the test.
func find(t *testing.T, said []line, from int, prefix string) int {
	t.Helper()
	for i := from; i < len(said); i++ {
		if strings.HasPrefix(said[i].text, prefix) {
			return i
		}
	}
	t.Fatalf("the machine did not say %q", prefix)
	return 0
}

func TestAMachineWhoseGuardIsKilledIsResetByItsWatchdogAndSaysSoAfterwards(t *testing.T) {
	said := boot(t, "kill", "i6300esb")
	first := find(t, said, 0, "GUARD")
	if want := armed("i6300ESB timer", "hardware"); said[first].text != want {
		t.Errorf("got %s, want %s", said[first].text, want)
	}
	kill := find(t, said, first, "KILL")
	second := find(t, said, kill, "GUARD")
	livedOn(t, said[kill], said[second-1])
	if !strings.HasSuffix(said[second].text, "reset=true") {
		t.Errorf("after the reset: %s", said[second].text)
	}
}

// watchdog is the time that the guard gives the machine's.
func watchdog() time.Duration { return lease.GuardParams().Watchdog }

// armed is what a guard says of its watchdog in a first boot.
func armed(identity, grade string) string {
	return fmt.Sprintf("GUARD identity=%q grade=%s timeout=%d reset=false", identity, grade, int(watchdog().Seconds()))
}

// livedOn checks how long the machine lived after its guard was killed; it says every 50 ms that it does.
func livedOn(t *testing.T, kill, last line) {
	t.Helper()
	lived := last.at - kill.at
	t.Logf("the machine lived on for %v after the guard was killed", lived)
	if lived > watchdog()+100*time.Millisecond {
		t.Errorf("the machine lived on for %v, the watchdog has %v", lived, watchdog())
	}
	if lived < watchdog()/2 {
		t.Errorf("the machine ended after %v: not by its watchdog", lived)
	}
}

func TestTheKernelsSoftwareWatchdogResetsTooAndIsShownAsSecondClass(t *testing.T) {
	said := boot(t, "kill", "softdog", "-no-reboot") // it keeps no evidence over a reset, so the machine ends there
	first := find(t, said, 0, "GUARD")
	if want := armed("Software Watchdog", "software"); said[first].text != want {
		t.Errorf("got %s, want %s", said[first].text, want)
	}
	livedOn(t, said[find(t, said, first, "KILL")], said[len(said)-1])
}

func TestAMachineThatFreezesItsGuestIsNotReset(t *testing.T) {
	said := boot(t, "freeze", "i6300esb")
	silence := find(t, said, 0, "SILENCE")
	frozen := find(t, said, silence, "FROZEN")
	if took := said[frozen].at - said[silence].at; took > 10*time.Second {
		t.Errorf("the guest was frozen %v after the last renewal, later than its lease", took)
	}
	var before, after int
	rested := find(t, said, frozen, "RESTED")
	if _, err := fmt.Sscanf(said[rested].text, "RESTED from %d to %d", &before, &after); err != nil || before != after || before == 0 {
		t.Errorf("%s, %v", said[rested].text, err)
	}
	find(t, said, rested, "THAWED")
	for i, l := range said {
		if strings.HasPrefix(l.text, "FAILED") || i > 0 && strings.HasPrefix(l.text, "GUARD") {
			t.Errorf("the machine said %s", l.text)
		}
	}
}
