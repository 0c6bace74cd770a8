package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/sys"
)

// The test binary is the sauh of the rooms that it builds: it also plays the
// room, the nodes' inits and, as "helper", programs that run in nodes.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "lab" && os.Args[2] == "internal":
		os.Exit(Internal(os.Args[3:]))
	case len(os.Args) > 2 && os.Args[1] == "helper":
		if err := helper(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Under -race each program that ends sleeps a second first, and here are many.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func helper(command string, args []string) error {
	switch command {
	case "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "poweroff":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "realtime":
		return sys.SetRealtime(10)
	case "starve": // arm the watchdog and never feed it
		if _, err := sys.OpenWatchdog("/dev/watchdog", time.Second); err != nil {
			return err
		}
		<-time.After(time.Hour)
		return nil
	case "watchdog":
		return tryWatchdog()
	case "listen": // print the first datagram
		c, err := net.ListenPacket("udp4", args[0])
		if err != nil {
			return err
		}
		fmt.Println("ready")
		buf := make([]byte, 100)
		n, _, err := c.ReadFrom(buf)
		fmt.Println(string(buf[:n]))
		return err
	case "send":
		c, err := net.Dial("udp4", args[0])
		if err != nil {
			return err
		}
		_, err = c.Write([]byte(args[1]))
		return err
	case "serve": // accept one connection and hold it
		l, err := net.Listen("tcp4", args[0])
		if err != nil {
			return err
		}
		fmt.Println("ready")
		if _, err = l.Accept(); err != nil {
			return err
		}
		<-time.After(time.Hour)
		return nil
	case "fence": // ask or shoot a node by the ha/fence.cfg on the standard input
		return tryFence(args[0], args[1], args[2])
	case "dial": // say how a connection ends within a second
		return dial(args[0])
	}
	return errors.New("no such helper")
}

func dial(address string) error {
	c, err := net.Dial("tcp4", address)
	if err != nil {
		return err
	}
	fmt.Println("connected")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, err = c.Read(make([]byte, 1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Println("silent")
	case err != nil:
		fmt.Println("ended:", err)
	}
	return nil
}

// tryWatchdog goes through every ioctl and leaves the device disarmed.
func tryWatchdog() error {
	w, err := sys.OpenWatchdog("/dev/watchdog", 5*time.Second)
	if err != nil {
		return err
	}
	fmt.Println(w.Identity(), w.Timeout())
	if _, err := sys.OpenWatchdog("/dev/watchdog0", 5*time.Second); !errors.Is(err, sys.ErrWatchdogHeld) {
		return fmt.Errorf("second open: %w", err)
	}
	if err := w.Feed(); err != nil {
		return err
	}
	fd := int(w.File().Fd())
	boot, err := unix.IoctlGetInt(fd, unix.WDIOC_GETBOOTSTATUS)
	fmt.Println("boot status", boot, err)
	left, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMELEFT)
	fmt.Println("time left", left >= 4, err)
	for _, o := range []int32{unix.WDIOS_DISABLECARD, unix.WDIOS_ENABLECARD} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.WDIOC_SETOPTIONS, uintptr(unsafe.Pointer(&o))); errno != 0 {
			return fmt.Errorf("set options %d: %w", o, errno)
		}
		left, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMELEFT)
		fmt.Println("option", o, "time left", left >= 4, err)
	}
	zero := int32(0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.WDIOC_SETTIMEOUT, uintptr(unsafe.Pointer(&zero))); errno != unix.EINVAL {
		return fmt.Errorf("timeout 0: %w", errno)
	}
	return w.Disarm()
}

var rooms atomic.Int32

// newRoom builds a room with one idle unit a node; it is removed when the test ends.
func newRoom(t *testing.T, nodes int, units ...Unit) *Room {
	t.Helper()
	c := roomConfig(t, nodes, units...)
	r, err := Up(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(logPath(c.Dir))
			t.Logf("room.log:\n%s", text)
		}
		if _, err := r.Down(context.Background(), false); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return r
}

func roomConfig(t *testing.T, nodes int, units ...Unit) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	if _, err := sys.Cgroup2Root(); err != nil {
		t.Skip(err)
	}
	if units == nil {
		units = []Unit{{Name: "idle", Argv: []string{"sleep", "1000"}, Restart: true}}
	}
	parent, err := os.MkdirTemp("", "sauh-lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	return Config{
		Name: fmt.Sprintf("t-%d-%d", os.Getpid(), rooms.Add(1)), Dir: filepath.Join(parent, "room"),
		Nodes: nodes, Units: units,
	}
}

// sh runs a shell line in a node and returns its output; it must succeed.
func sh(t *testing.T, r *Room, node, line string) string {
	t.Helper()
	out, err := r.Exec(t.Context(), node, "sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", node, line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// start starts a helper in a node and waits for its first line, which it returns.
func start(t *testing.T, r *Room, node string, argv ...string) (cmd *exec.Cmd, in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	cmd = r.Exec(t.Context(), node, append([]string{"sauh", "helper"}, argv...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	out = bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); err != nil {
		t.Fatalf("%v: %q, %v", argv, line, err)
	}
	return cmd, in, out
}

// reaches says whether from gets an answer to a ping.
func reaches(t *testing.T, r *Room, from, address string) bool {
	t.Helper()
	return r.Exec(t.Context(), from, "ping", "-c1", "-W1", address).Run() == nil
}

// waitFor polls what a room says until ok; it fails the test after 10 s.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		<-tick.C
	}
}

func nodeStatus(t *testing.T, r *Room, node string) NodeStatus {
	t.Helper()
	st, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Node == node {
			return n
		}
	}
	t.Fatalf("no node %s in %v", node, st)
	return NodeStatus{}
}

func power(t *testing.T, r *Room, node string, a PowerAction) PowerResult {
	t.Helper()
	res, err := r.Power(t.Context(), node, a)
	if err != nil {
		t.Fatal(err)
	}
	return res
}
