package ipmi

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"sauh.dev/sauh/internal/core/fence"
)

// Errors that a caller can test for.
var (
	// ErrAuth: user, password or privilege are wrong.
	ErrAuth = errors.New("the BMC refuses user or password")
	// ErrProtocol: the BMC answers something that IPMI does not allow.
	ErrProtocol = errors.New("the BMC does not speak IPMI 2.0 properly")
)

// Cipher suites of the specification's table 22-20 that authenticate and encrypt.
const (
	CipherSHA1   = 3  // every BMC has it
	CipherSHA256 = 17 // preferred
)

// Config says where a BMC is and how to speak to it.
type Config struct {
	// Address is host:port; the port of IPMI is 623.
	Address        string
	User, Password string
	// Cipher is CipherSHA256 or CipherSHA1; 0 tries them in this order.
	Cipher int
	// Resend is the time after which an unanswered datagram is sent again, at first; it doubles with each session
	// that was begun in vain. 0 means 400 ms.
	Resend time.Duration
	// Now is the clock of the readings.
	Now func() time.Duration
}

// Client reads and switches a machine's power through its BMC. It keeps no
// session between calls. Each call ends with its context.
type Client struct{ cfg Config }

// New makes a client; nothing is sent yet.
func New(cfg Config) *Client {
	if cfg.Resend == 0 {
		cfg.Resend = 400 * time.Millisecond
	}
	return &Client{cfg: cfg}
}

// Commands, as network function and number.
const (
	netFnChassis = 0x00
	netFnApp     = 0x06

	cmdChassisStatus  = 0x01
	cmdChassisControl = 0x02
	cmdSystemGUID     = 0x37
	cmdPrivilege      = 0x3b
	cmdCloseSession   = 0x3c

	powerDown        = 0x00
	privilegeUser    = 0x02
	privilegeOperate = 0x03
)

// Status reads the system's GUID and then its power, in one session. Asked is when the question about the power was sent.
func (c *Client) Status(ctx context.Context) (fence.Reading, error) {
	var r fence.Reading
	err := c.session(ctx, privilegeUser, func(s *session) error {
		guid, err := s.guid()
		if err != nil {
			return err
		}
		r.UUID = guid
		r.Asked = c.cfg.Now()
		r.Power, err = s.power()
		r.Answered = c.cfg.Now()
		return err
	})
	if err != nil {
		return fence.Reading{}, fmt.Errorf("ask BMC %s: %w", c.cfg.Address, err)
	}
	return r, nil
}

// PowerOff has the BMC cut the power if same says that the GUID is the node's; GUID and order go in one session. The
// machine may still run when it returns: Status tells. Idempotent.
func (c *Client) PowerOff(ctx context.Context, same func(uuid string) error) error {
	err := c.session(ctx, privilegeOperate, func(s *session) error {
		guid, err := s.guid()
		if err == nil {
			err = same(guid)
		}
		if err != nil {
			return err
		}
		_, err = s.command(netFnChassis, cmdChassisControl, powerDown)
		var code CompletionError
		if errors.As(err, &code) && code == 0xd5 { // not supported in present state: it is off
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("switch off by BMC %s: %w", c.cfg.Address, err)
	}
	return nil
}

// CompletionError is a command's completion code other than 0.
type CompletionError byte

// Error names the code.
func (e CompletionError) Error() string { return fmt.Sprintf("completion code %#02x", byte(e)) }

// session opens a session, raises it to privilege, runs f and closes it. f may be run again in another session if the
// BMC falls silent.
func (c *Client) session(ctx context.Context, privilege byte, f func(*session) error) error {
	ciphers := []int{c.cfg.Cipher}
	if c.cfg.Cipher == 0 {
		ciphers = []int{CipherSHA256, CipherSHA1}
	}
	var failed []error
	for _, id := range ciphers {
		err := errSilent
		for resend := c.cfg.Resend; errors.Is(err, errSilent); resend *= 2 {
			err = c.with(ctx, id, privilege, resend, f)
		}
		if err == nil || !errors.Is(err, errCipher) {
			return err
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// with is one session with one cipher suite. errCipher: the BMC does not have it, and f was not called. errSilent:
// it may be tried again.
func (c *Client) with(ctx context.Context, cipher int, privilege byte, resend time.Duration, f func(*session) error) error {
	suite, err := suiteOf(cipher)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", c.cfg.Address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// Whoever waits for a datagram is woken when the context ends.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	s := &session{ctx: ctx, conn: conn, resend: resend, suite: suite}
	if err := s.open(c.cfg.User, c.cfg.Password, privilege); err != nil {
		return ended(ctx, err)
	}
	defer s.close()
	_, err = s.command(netFnApp, cmdPrivilege, privilege)
	if err == nil {
		err = f(s)
	}
	return ended(ctx, err)
}

// ended names the end of the context instead of what followed from it.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	}
	return err
}

// guid asks for the system's GUID; "" if the BMC has none. The bytes are printed in their order.
func (s *session) guid() (string, error) {
	b, err := s.command(netFnApp, cmdSystemGUID)
	var code CompletionError
	if errors.As(err, &code) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if len(b) != 16 {
		return "", fmt.Errorf("%w: a GUID of %d bytes", ErrProtocol, len(b))
	}
	return fmt.Sprintf("%s-%s-%s-%s-%s", hex.EncodeToString(b[:4]), hex.EncodeToString(b[4:6]),
		hex.EncodeToString(b[6:8]), hex.EncodeToString(b[8:10]), hex.EncodeToString(b[10:])), nil
}

// power asks for the chassis status. Bit 0 of its first byte says that the system has power.
func (s *session) power() (fence.PowerState, error) {
	b, err := s.command(netFnChassis, cmdChassisStatus)
	if err != nil {
		return fence.Unknown, err
	}
	if len(b) < 3 {
		return fence.Unknown, fmt.Errorf("%w: a chassis status of %d bytes", ErrProtocol, len(b))
	}
	if b[0]&1 == 1 {
		return fence.On, nil
	}
	return fence.Off, nil
}
