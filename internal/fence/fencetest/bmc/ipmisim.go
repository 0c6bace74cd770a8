package bmc

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// IPMISim is the configuration of ipmi_sim, the IPMI simulator of Debian's package openipmi. It has cipher suite 3.
type IPMISim struct {
	Address        string // host:port, an address of this machine
	User, Password string // an operator, as docs/fencing.md asks for; at most 16 characters each
	UUID           string // of the system
	// Chassis is the shell command that answers for the chassis, in the directory of Write. ipmi_sim appends "get power",
	// "set power 0" or the like, takes power:1 and power:0 for an answer, and waits for the command's end.
	Chassis string
}

// IPMISimProgram is the name of the program.
const IPMISimProgram = "ipmi_sim"

// Write writes the files of ipmi_sim into dir, which must not have those of an earlier one: what that had saved would come
// before its configuration. It returns the arguments of the program, which has to run in dir.
func (s IPMISim) Write(dir string) (argv []string, err error) {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		return nil, err
	}
	guid := strings.ReplaceAll(s.UUID, "-", "")
	for name, text := range map[string]string{
		"lan.conf": fmt.Sprintf(lanConf, host, port, guid, s.Chassis, s.User, s.Password),
		"commands": fmt.Sprintf(simCommands, guid),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	// -n: no commands from standard input.
	return []string{IPMISimProgram, "-n", "-c", "lan.conf", "-f", "commands", "-s", "state"}, os.Mkdir(filepath.Join(dir, "state"), 0o700)
}

const lanConf = `name "bmc"
startlan 1
  addr %s %s
  priv_limit operator
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
  guid %s
endlan
chassis_control "%s"
user 2 true "%s" "%s" operator 10 none md2 md5 straight
`

const simCommands = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
mc_set_guid 0x20 %s
mc_enable 0x20
`

// PingRMCP waits until a BMC answers RMCP's presence ping, as it does before any session, or ctx is done.
func PingRMCP(ctx context.Context, address string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	const again = 20 * time.Millisecond
	ping := []byte{0x06, 0x00, 0xff, 0x06, 0x00, 0x00, 0x11, 0xbe, 0x80, 0x00, 0x00, 0x00}
	pace := time.NewTicker(again)
	defer pace.Stop()
	for {
		_, _ = conn.Write(ping) // refused as long as nobody listens
		_ = conn.SetReadDeadline(time.Now().Add(again))
		if _, err := conn.Read(make([]byte, 100)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s answers no ping: %w", address, ctx.Err())
		case <-pace.C:
		}
	}
}
