package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prompt of the serial port.
const prompt = "sauh-guest> "

// Console answers the few commands of the serial port until tty or ctx ends;
// powerOff is called for the command of that name.
func (g *Guest) Console(ctx context.Context, tty io.ReadWriter, powerOff func()) error {
	in := bufio.NewScanner(tty)
	fmt.Fprint(tty, prompt)
	for in.Scan() && ctx.Err() == nil {
		switch cmd := strings.TrimSpace(in.Text()); cmd {
		case "":
		case "help":
			fmt.Fprintln(tty, "help      this list\nstatus    address, uptime, ledger\npoweroff  write everything out and switch off")
		case "status":
			text, err := json.Marshal(g.ledger.Status())
			if err != nil {
				return fmt.Errorf("encode status: %w", err)
			}
			fmt.Fprintf(tty, "%s %s, up %s, boot %s\nledger %s\n", g.config.Hostname, g.config.IP.Addr(),
				time.Since(g.booted).Round(time.Second), g.boot, text)
		case "poweroff":
			powerOff()
			return nil
		default:
			fmt.Fprintf(tty, "unknown command %q: try help\n", cmd)
		}
		fmt.Fprint(tty, prompt)
	}
	if err := in.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read serial port: %w", err)
	}
	return nil
}

// An event of the kernel's input devices: two words of time, then type, code and value.
const (
	inputEventSize = 24
	inputKey       = 1   // EV_KEY
	inputPower     = 116 // KEY_POWER
)

// openButtons opens all input devices. The kernel keeps no event for later:
// a button that is pressed before this returned is not seen.
func openButtons() ([]*os.File, error) {
	names, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(names) == 0 {
		return nil, errors.Join(errors.New("no input device: the power button does nothing"), err)
	}
	var files []*os.File
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return files, fmt.Errorf("open input device: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// watchButton calls powerOff when the ACPI power button is pressed. It returns when ctx is done, and closes f.
func watchButton(ctx context.Context, f *os.File, powerOff func()) error {
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	if err := readButton(f, powerOff); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// readButton reads input events from r until it ends.
func readButton(r io.Reader, powerOff func()) error {
	buf := make([]byte, inputEventSize)
	for {
		if _, err := io.ReadFull(r, buf); err != nil {
			return fmt.Errorf("read input device: %w", err)
		}
		kind, code := binary.NativeEndian.Uint16(buf[16:]), binary.NativeEndian.Uint16(buf[18:])
		value := int32(binary.NativeEndian.Uint32(buf[20:]))
		if kind == inputKey && code == inputPower && value == 1 {
			powerOff()
			return nil
		}
	}
}
