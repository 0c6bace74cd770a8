package qga

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

const (
	// freezeTimeout is for what must write out a guest's dirty memory first.
	freezeTimeout = 60 * time.Second
	// refusalTime is how long a refusal of what is not answered otherwise is waited for.
	refusalTime = time.Second
	// chunk is how much of a file is moved by one command, in bytes.
	chunk = 1 << 20
	// pollFirst and pollMax: how often a program inside the guest is asked whether it has ended.
	pollFirst, pollMax = 20 * time.Millisecond, time.Second
)

// Ping returns nil if the agent answers. Errors as Call.
func (c *Client) Ping(ctx context.Context) error { return c.Call(ctx, "guest-ping", nil, nil) }

// Info is what an agent says of itself.
type Info struct {
	Version  string    `json:"version"`
	Commands []Command `json:"supported_commands"`
}

// Command is one that an agent knows.
type Command struct {
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
	Answers bool   `json:"success-response"` // or says nothing when it succeeds
}

// Supports reports whether the agent knows a command and may carry it out now.
func (i Info) Supports(command string) bool {
	for _, c := range i.Commands {
		if c.Name == command {
			return c.Enabled
		}
	}
	return false
}

// Info asks the agent for its version and commands.
func (c *Client) Info(ctx context.Context) (Info, error) { return Ask[Info](ctx, c, "guest-info", nil) }

// ShutdownMode is how a guest ends.
type ShutdownMode string

// The modes.
const (
	PowerOff ShutdownMode = "powerdown"
	Halt     ShutdownMode = "halt"
	Reboot   ShutdownMode = "reboot"
)

// Shutdown asks the guest to shut down. nil means that it was asked and did not refuse within a second: an agent does not
// answer this when it obeys. An agent that does not answer at all gives ErrSilent.
func (c *Client) Shutdown(ctx context.Context, mode ShutdownMode) error {
	if err := c.Ping(ctx); err != nil {
		return fmt.Errorf("guest-shutdown: %w", err)
	}
	short, cancel := context.WithTimeout(ctx, refusalTime)
	defer cancel()
	err := c.Call(short, "guest-shutdown", map[string]ShutdownMode{"mode": mode}, nil)
	if errors.Is(err, ErrSilent) {
		return ctx.Err()
	}
	return err
}

// Interface is a network interface inside the guest.
type Interface struct {
	Name      string    `json:"name"`
	MAC       string    `json:"hardware-address,omitempty"`
	Addresses []Address `json:"ip-addresses,omitempty"`
}

// Address is one of an interface.
type Address struct {
	IP     string `json:"ip-address"`
	Type   string `json:"ip-address-type"` // "ipv4" or "ipv6"
	Prefix int    `json:"prefix"`
}

// Interfaces lists the guest's network interfaces.
func (c *Client) Interfaces(ctx context.Context) ([]Interface, error) {
	return Ask[[]Interface](ctx, c, "guest-network-get-interfaces", nil)
}

// OSInfo is the guest's operating system, each field as it names itself.
type OSInfo struct {
	ID            string `json:"id,omitempty"`
	Name          string `json:"name,omitempty"`
	PrettyName    string `json:"pretty-name,omitempty"`
	Version       string `json:"version,omitempty"`
	VersionID     string `json:"version-id,omitempty"`
	KernelRelease string `json:"kernel-release,omitempty"`
	KernelVersion string `json:"kernel-version,omitempty"`
	Machine       string `json:"machine,omitempty"`
}

// OSInfo asks what runs in the guest.
func (c *Client) OSInfo(ctx context.Context) (OSInfo, error) {
	return Ask[OSInfo](ctx, c, "guest-get-osinfo", nil)
}

// The states of a guest's file systems.
const (
	Thawed = "thawed"
	Frozen = "frozen"
)

// FreezeStatus is Thawed or Frozen.
func (c *Client) FreezeStatus(ctx context.Context) (string, error) {
	return Ask[string](ctx, c, "guest-fsfreeze-status", nil)
}

// Freeze writes out and freezes the guest's file systems, and returns how many. It takes up to a minute unless ctx says
// otherwise. After an error, Thaw: the guest may have frozen them all the same, late.
func (c *Client) Freeze(ctx context.Context) (int, error) {
	ctx, cancel := within(ctx, freezeTimeout)
	defer cancel()
	return Ask[int](ctx, c, "guest-fsfreeze-freeze", nil)
}

// Thaw undoes Freeze and returns how many file systems it thawed. What is not frozen is no error.
func (c *Client) Thaw(ctx context.Context) (int, error) {
	ctx, cancel := within(ctx, freezeTimeout)
	defer cancel()
	return Ask[int](ctx, c, "guest-fsfreeze-thaw", nil)
}

func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// Program is what Exec runs inside the guest.
type Program struct {
	Path  string   `json:"path"`
	Args  []string `json:"arg,omitempty"`
	Env   []string `json:"env,omitempty"` // NAME=value
	Input []byte   `json:"input-data,omitempty"`
	// Capture keeps what it prints for ExecStatus.
	Capture bool `json:"capture-output,omitempty"`
}

// ExecStatus is what became of a program.
type ExecStatus struct {
	Exited   bool `json:"exited"`
	ExitCode int  `json:"exitcode"`
	Signal   int  `json:"signal"` // 0 if no signal ended it
	// Out and Err are what it printed, if that was to be captured and it has ended; Cut and ErrCut say that the agent kept only a part.
	Out    []byte `json:"out-data"`
	Err    []byte `json:"err-data"`
	Cut    bool   `json:"out-truncated"`
	ErrCut bool   `json:"err-truncated"`
}

// Exec starts a program and returns its number inside the guest.
func (c *Client) Exec(ctx context.Context, p Program) (int, error) {
	r, err := Ask[struct {
		PID int `json:"pid"`
	}](ctx, c, "guest-exec", p)
	return r.PID, err
}

// ExecStatus asks what became of the program pid. An agent forgets one that has ended once it has told so.
func (c *Client) ExecStatus(ctx context.Context, pid int) (ExecStatus, error) {
	return Ask[ExecStatus](ctx, c, "guest-exec-status", map[string]int{"pid": pid})
}

// Run is Exec and the wait for the program's end, as long as ctx lasts. When ctx ends the program goes on inside the guest.
func (c *Client) Run(ctx context.Context, p Program) (ExecStatus, error) {
	pid, err := c.Exec(ctx, p)
	for wait := pollFirst; err == nil; wait = min(2*wait, pollMax) {
		var s ExecStatus
		if s, err = c.ExecStatus(ctx, pid); err != nil || s.Exited {
			return s, err
		}
		select {
		case <-ctx.Done():
			err = fmt.Errorf("wait for %s inside the guest: %w", p.Path, ctx.Err())
		case <-time.After(wait):
		}
	}
	return ExecStatus{}, err
}

// SetPassword sets the password of a user of the guest. With crypted it is in the form of crypt(3).
func (c *Client) SetPassword(ctx context.Context, user, password string, crypted bool) error {
	return c.Call(ctx, "guest-set-user-password", map[string]any{
		"username": user, "password": base64.StdEncoding.EncodeToString([]byte(password)), "crypted": crypted,
	}, nil)
}

// ReadFile returns at most limit bytes of a file inside the guest, and whether there is more. ctx bounds each
// command if it has no deadline.
func (c *Client) ReadFile(ctx context.Context, path string, limit int) (data []byte, more bool, err error) {
	handle, err := c.openFile(ctx, path, "r")
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, c.closeFile(ctx, handle)) }()
	for {
		r, err := Ask[struct {
			Data []byte `json:"buf-b64"`
			EOF  bool   `json:"eof"`
		}](ctx, c, "guest-file-read", map[string]int{"handle": handle, "count": min(chunk, limit-len(data)+1)})
		if err != nil {
			return nil, false, err
		}
		data = append(data, r.Data...)
		if len(data) > limit {
			return data[:limit], true, nil
		}
		if r.EOF || len(r.Data) == 0 {
			return data, false, nil
		}
	}
}

// WriteFile makes or replaces a file inside the guest.
func (c *Client) WriteFile(ctx context.Context, path string, data []byte) (err error) {
	handle, err := c.openFile(ctx, path, "w")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.closeFile(ctx, handle)) }()
	for len(data) > 0 {
		r, err := Ask[struct {
			Count int `json:"count"`
		}](ctx, c, "guest-file-write", map[string]any{"handle": handle, "buf-b64": data[:min(chunk, len(data))]})
		if err != nil {
			return err
		}
		if r.Count <= 0 || r.Count > len(data) {
			return fmt.Errorf("guest-file-write: the agent says that it wrote %d bytes of %d", r.Count, len(data))
		}
		data = data[r.Count:]
	}
	return nil
}

func (c *Client) openFile(ctx context.Context, path, mode string) (int, error) {
	return Ask[int](ctx, c, "guest-file-open", map[string]string{"path": path, "mode": mode})
}

func (c *Client) closeFile(ctx context.Context, handle int) error {
	return c.Call(ctx, "guest-file-close", map[string]int{"handle": handle}, nil)
}
