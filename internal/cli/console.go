package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
)

// leaveKey is Ctrl-], as in telnet and virsh.
const leaveKey = 0x1d

func (m *Main) vmConsole() *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use: "console VMID", Short: "Connect to a guest's serial port; Ctrl-] leaves", Args: takes("VMID"),
		Long: "When standard input is no terminal, it is sent to the guest as it is, and the guest's output is printed until\n" +
			"the guest ends, or --for is over.",
		Example: "  sauh vm console 100\n  echo reboot | sauh vm console 100 --for 5s",
	}
	cmd.Flags().DurationVar(&limit, "for", 0, "leave after this time; 0 is never")
	cmd.RunE = m.onGuest(func(ctx context.Context, c *client.Client, node string, id model.VMID) error {
		if limit > 0 {
			var stop context.CancelFunc
			ctx, stop = context.WithTimeout(ctx, limit)
			defer stop()
		}
		port, err := c.Console(ctx, node, id)
		if err != nil {
			return err
		}
		return m.console(ctx, port, node, id)
	})
	return cmd
}

// console joins the terminal and the port until the guest's end closes, the leave key is
// pressed or ctx is done, all of which are good ends.
func (m *Main) console(ctx context.Context, port io.ReadWriteCloser, node string, id model.VMID) error {
	fd, tty := terminal(m.Stdin)
	if tty {
		restore, err := rawMode(fd)
		if err != nil {
			_ = port.Close()
			return fmt.Errorf("console of guest %d: %w", id, err)
		}
		defer restore()
		fmt.Fprintf(m.Stderr, "connected to guest %d on node %s, Ctrl-] leaves\r\n", id, node)
		defer fmt.Fprintf(m.Stderr, "\r\nleft the console of guest %d\r\n", id)
	}
	if !tty {
		fmt.Fprintf(m.Stderr, "connected to guest %d on node %s until it ends; Ctrl-C leaves\n", id, node)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var inErr error
	wg.Go(func() {
		<-ctx.Done()
		_ = port.Close()
	})
	wg.Go(func() {
		if inErr = m.typeInto(ctx, port, tty); inErr != nil || tty {
			cancel()
		}
	})
	_, outErr := io.Copy(m.Stdout, port)
	ended := ctx.Err() != nil // by us: what the copy says of it means nothing
	cancel()
	wg.Wait()
	switch {
	case inErr != nil:
		return fmt.Errorf("console of guest %d: %w", id, inErr)
	case outErr != nil && !ended:
		return fmt.Errorf("console of guest %d: %w", id, outErr)
	}
	return nil
}

// typeInto copies standard input to the port until it ends or, on a terminal, the leave key comes.
func (m *Main) typeInto(ctx context.Context, port io.Writer, tty bool) error {
	buf := make([]byte, 4096)
	for {
		if ok, err := waitReadable(ctx, m.Stdin); !ok {
			return err
		}
		n, err := m.Stdin.Read(buf)
		keys := buf[:n]
		leave := -1
		if tty {
			leave = bytes.IndexByte(keys, leaveKey)
		}
		if leave >= 0 {
			keys = keys[:leave]
		}
		if len(keys) > 0 {
			if _, werr := port.Write(keys); werr != nil {
				return nil // the other copy knows why
			}
		}
		if leave >= 0 || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
