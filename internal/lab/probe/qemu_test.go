package probe_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/lab/image"
)

// The tests with a real guest run in a network namespace of their own, which
// ends with them: the test starts itself again there and finds its disk in this variable.
const insideEnv = "SAUH_PROBE_TEST_DISK"

const (
	guestIP = "10.123.45.2"
	hostIP  = "10.123.45.1"
)

// inNamespace returns the guest's disk and true in the namespace; outside of
// it, it makes the disk, runs the calling test inside and returns false.
func inNamespace(t *testing.T) (disk string, inside bool) {
	t.Helper()
	if disk := os.Getenv(insideEnv); disk != "" {
		return disk, true
	}
	if testing.Short() {
		t.Skip("boots virtual machines")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, prog := range []string{"ip", "ping", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(prog); err != nil {
			t.Skipf("needs the program %s", prog)
		}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+buildDisk(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("test in its namespace: %v", err)
	}
	return "", false
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// makeNetwork makes a bridge with an address for the test and one tap for each name.
func makeNetwork(t *testing.T, taps ...string) {
	t.Helper()
	command(t, "ip", "link", "set", "lo", "up")
	command(t, "ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
	command(t, "ip", "addr", "add", hostIP+"/24", "dev", "br0")
	command(t, "ip", "link", "set", "br0", "up")
	for _, tap := range taps {
		command(t, "ip", "tuntap", "add", tap, "mode", "tap")
		command(t, "ip", "link", "set", tap, "master", "br0", "up")
	}
}

// buildDisk builds the guest program and its image, and returns a personalized copy.
func buildDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "sauh-guest")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, "sauh.dev/sauh/cmd/sauh-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest program: %v\n%s", err, out)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = dir
	}
	start := time.Now()
	built, err := image.Build(t.Context(), image.Options{Guest: program, CacheDir: filepath.Join(cache, "sauh-lab")})
	if errors.Is(err, image.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("image built or found in %s", time.Since(start).Round(time.Millisecond))
	disk := filepath.Join(dir, "disk.raw")
	if err := image.Copy(disk, built); err != nil {
		t.Fatal(err)
	}
	if err := image.Personalize(disk, image.Config{
		IP: netip.MustParsePrefix(guestIP + "/24"), Gateway: netip.MustParseAddr(hostIP), Hostname: "probe1",
	}); err != nil {
		t.Fatal(err)
	}
	return disk
}

// machine is a QEMU of the test.
type machine struct {
	cmd    *exec.Cmd
	qmp    *qmp
	exited chan struct{} // closed when QEMU has ended
	tty    net.Conn

	mu     sync.Mutex
	serial strings.Builder
	begun  time.Time
}

// startQEMU starts QEMU on disk and tap; it is killed at the end of the test if it still runs.
func startQEMU(t *testing.T, disk, tap string, extra ...string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "probe-qemu-")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-accel", "tcg", "-machine", "pc", "-m", "192", "-nodefaults", "-display", "none", "-no-user-config",
		"-chardev", "socket,id=tty,server=on,wait=off,path=" + dir + "/tty", "-serial", "chardev:tty",
		"-qmp", "unix:" + dir + "/qmp,server=on,wait=off",
		"-drive", "file=" + disk + ",format=raw,if=none,id=d,cache=none",
		"-device", "virtio-blk-pci,drive=d,bootindex=0",
		"-netdev", "tap,id=n,ifname=" + tap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n,romfile=,mac=52:54:00:12:34:56",
	}
	m := &machine{exited: make(chan struct{}), begun: time.Now()}
	m.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), "qemu-system-x86_64", append(args, extra...)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.cmd.Wait(); close(m.exited) }()
	t.Cleanup(func() { m.kill(); _ = os.RemoveAll(dir) })
	m.tty = dialUnix(t, dir+"/tty")
	m.qmp = &qmp{conn: dialUnix(t, dir+"/qmp")}
	m.qmp.in = json.NewDecoder(m.qmp.conn)
	m.qmp.do(t, "qmp_capabilities", nil)
	go m.readSerial()
	return m
}

func (m *machine) readSerial() {
	in := bufio.NewReader(m.tty)
	for {
		b, err := in.ReadByte()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.serial.WriteByte(b)
		m.mu.Unlock()
	}
}

// saw waits until the serial port printed text.
func (m *machine) saw(t *testing.T, text string) {
	t.Helper()
	poll(t, "serial port prints "+text, func() bool { return strings.Contains(m.printed(), text) })
}

func (m *machine) printed() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial.String()
}

// kill ends QEMU at once, as a power cut would, and waits for its end.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill()
	<-m.exited
}

func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	var conn net.Conn
	poll(t, "QEMU opens "+path, func() bool {
		var err error
		conn, err = (&net.Dialer{}).DialContext(t.Context(), "unix", path)
		return err == nil
	})
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// poll waits up to 30 s until ready says so.
func poll(t *testing.T, what string, ready func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// qmp is as much of QEMU's protocol as these tests need.
type qmp struct {
	conn net.Conn
	in   *json.Decoder
}

func (q *qmp) do(t *testing.T, cmd string, args map[string]any) map[string]any {
	t.Helper()
	msg := map[string]any{"execute": cmd}
	if args != nil {
		msg["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(msg); err != nil {
		t.Fatalf("qmp %s: %v", cmd, err)
	}
	for {
		var answer map[string]any
		if err := q.in.Decode(&answer); err != nil {
			t.Fatalf("qmp %s: %v", cmd, err)
		}
		if answer["error"] != nil {
			t.Fatalf("qmp %s: %v", cmd, answer["error"])
		}
		if ret, ok := answer["return"]; ok {
			m, _ := ret.(map[string]any)
			return m
		}
	}
}

// bootGuest starts QEMU and waits until the guest is ready.
func bootGuest(t *testing.T, disk, tap string) *machine {
	t.Helper()
	m := startQEMU(t, disk, tap)
	m.saw(t, fmt.Sprintf("%s probe1 %s", guest.ReadyPrefix, guestIP))
	t.Logf("from QEMU's start to ready: %s", time.Since(m.begun).Round(10*time.Millisecond))
	return m
}
