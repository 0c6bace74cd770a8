package fencetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// IPMISim is a running ipmi_sim whose chassis is a few files in a directory.
type IPMISim struct {
	Address        string // host:port
	User, Password string
	dir            string
	t              *testing.T
}

// StartIPMISim starts the IPMI simulator of Debian's package openipmi on a free port of the loopback. It ends with the test,
// which is skipped if the program is not there. guid is the system's, 32 hexadecimal digits.
func StartIPMISim(t *testing.T, guid string) *IPMISim {
	t.Helper()
	program, err := exec.LookPath("ipmi_sim")
	if err != nil {
		t.Skip("needs the program ipmi_sim: install the package openipmi")
	}
	dir := t.TempDir()
	s := &IPMISim{User: "admin", Password: "secret", dir: dir, t: t, Address: freeUDP(t)}
	_, port, _ := net.SplitHostPort(s.Address)
	s.write("lan.conf", fmt.Sprintf(simConfig, port, guid, filepath.Join(dir, "chassis"), s.User, s.Password))
	s.write("sim.emu", fmt.Sprintf(simCommands, guid))
	s.write("chassis", fmt.Sprintf(chassisScript, dir))
	s.write("power", "1")
	s.write("orders", "")
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "-n",
		"-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", filepath.Join(dir, "state"))
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
		if text, _ := os.ReadFile(filepath.Join(dir, "out")); t.Failed() {
			t.Logf("ipmi_sim said:\n%s", text)
		}
	})
	s.waitPing()
	return s
}

const simConfig = `name "sim"
startlan 1
  addr 127.0.0.1 %s
  priv_limit admin
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
  guid %s
endlan
chassis_control "%s 0x20"
user 2 true "%s" "%s" admin 10 none md2 md5 straight
`

const simCommands = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
mc_set_guid 0x20 %s
mc_enable 0x20
`

// chassisScript is what ipmi_sim asks and tells about the chassis: "get power" and "set power 0". The file late
// holds how many seconds an order takes, the file deaf makes it do nothing, the file says replaces the truth.
const chassisScript = `#!/bin/sh
cd '%s' || exit 1
shift
case "$1" in
get)
	[ -e slow ] && sleep "$(cat slow)"
	if [ -e says ]; then echo "power:$(cat says)"; else echo "power:$(cat power)"; fi ;;
set)
	echo "$*" >>orders
	[ -e deaf ] && exit 0
	value=$3
	if [ -e late ]; then
		(sleep "$(cat late)"; echo "$value" >power) >/dev/null 2>&1 </dev/null &
	else
		echo "$value" >power
	fi ;;
esac
exit 0
`

func freeUDP(t *testing.T) string {
	t.Helper()
	var l net.ListenConfig
	c, err := l.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().String()
}

func (s *IPMISim) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// Set writes one of the files that the chassis obeys: power (1 or 0), says, late, slow, deaf.
func (s *IPMISim) Set(name, value string) { s.t.Helper(); s.write(name, value) }

// Power is whether the chassis really has power.
func (s *IPMISim) Power() bool {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "power"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(text)) == "1"
}

// Orders is what the BMC was told to do.
func (s *IPMISim) Orders() string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "orders"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// waitPing waits until the simulator answers an RMCP ping.
func (s *IPMISim) waitPing() {
	s.t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(s.t.Context(), "udp4", s.Address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	ping := []byte{0x06, 0x00, 0xff, 0x06, 0x00, 0x00, 0x11, 0xbe, 0x80, 0x00, 0x00, 0x00}
	answer := make([]byte, 100)
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		_, _ = conn.Write(ping)
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Read(answer); err == nil {
			return
		}
		if text, _ := os.ReadFile(filepath.Join(s.dir, "out")); strings.Contains(string(text), "rror") {
			s.t.Fatalf("ipmi_sim does not start: %s", text)
		}
		<-time.After(20 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(s.dir, "out"))
	s.t.Fatalf("ipmi_sim answers no ping: %s", text)
}
