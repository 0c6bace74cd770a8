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

	"sauh.dev/sauh/internal/fence/fencetest/bmc"
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
	program, err := exec.LookPath(bmc.IPMISimProgram)
	if err != nil {
		t.Skip("needs the program ipmi_sim: install the package openipmi")
	}
	dir := t.TempDir()
	s := &IPMISim{User: "admin", Password: "secret", dir: dir, t: t, Address: freeUDP(t)}
	s.write("chassis", fmt.Sprintf(chassisScript, dir))
	s.write("power", "1")
	s.write("orders", "")
	conf := bmc.IPMISim{Address: s.Address, User: s.User, Password: s.Password, UUID: guid, Chassis: "./chassis"}
	argv, err := conf.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, argv[1:]...)
	cmd.Dir = dir
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
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := bmc.PingRMCP(ctx, s.Address); err != nil {
		t.Fatal(err)
	}
	return s
}

// chassisScript is what ipmi_sim asks and tells about the chassis: "get power" and "set power 0". The file late
// holds how many seconds an order takes, the file deaf makes it do nothing, the file says replaces the truth.
const chassisScript = `#!/bin/sh
cd '%s' || exit 1
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
