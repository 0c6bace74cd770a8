// Package redfish reads and switches a machine's power through a BMC that speaks
// Redfish (DMTF DSP0266), as much of it as fencing needs: one ComputerSystem's
// PowerState, UUID and ComputerSystem.Reset.
//
// It is not a general Redfish client, and follows neither redirects nor links to other hosts.
//
// Invariant: nothing is sent to a BMC whose certificate is not the pinned one, not even the
// user's name. Start reading with [Client].
package redfish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/fence"
)

// Errors that a caller can test for.
var (
	// ErrAuth: user or password are wrong, or the user may not do it.
	ErrAuth = errors.New("the BMC refuses user or password")
	// ErrCertificate: the certificate is not the pinned one.
	ErrCertificate = errors.New("the BMC has another certificate")
	// ErrProtocol: the answer is not what Redfish demands.
	ErrProtocol = errors.New("the BMC does not speak Redfish properly")
)

// maxAnswer bounds an answer in bytes; a ComputerSystem has some 10 KiB.
const maxAnswer = 1 << 20

// Config says where a BMC is and how to speak to it.
type Config struct {
	Address        string // host:port
	User, Password string
	Fingerprint    string // SHA-256 of the certificate, in hexadecimal
	// System is the path of the ComputerSystem; "" takes the only one.
	System string
	// Session logs in and out for each call; otherwise each request has the password.
	Session bool
	// Now is the clock of the readings.
	Now func() time.Duration
}

// Client speaks to one BMC. It keeps no connection between calls. Each call ends with its context.
type Client struct{ cfg Config }

// New makes a client; nothing is sent yet.
func New(cfg Config) *Client { return &Client{cfg: cfg} }

// Status reads power and UUID in one request. Asked is when it was sent.
func (c *Client) Status(ctx context.Context) (fence.Reading, error) {
	var r fence.Reading
	err := c.call(ctx, func(s *session) error {
		var err error
		r, _, err = s.system(ctx)
		return err
	})
	if err != nil {
		return fence.Reading{}, fmt.Errorf("ask BMC %s: %w", c.cfg.Address, err)
	}
	return r, nil
}

// PowerOff has the BMC cut the power if same says that the UUID is the node's. The machine may still run when it
// returns: Status tells. Idempotent.
func (c *Client) PowerOff(ctx context.Context, same func(uuid string) error) error {
	err := c.call(ctx, func(s *session) error {
		r, target, err := s.system(ctx)
		if err == nil {
			err = same(r.UUID)
		}
		if err != nil || r.Power == fence.Off { // several BMCs refuse to switch off what is off
			return err
		}
		return s.do(ctx, http.MethodPost, target, map[string]string{"ResetType": "ForceOff"}, nil)
	})
	if err != nil {
		return fmt.Errorf("switch off by BMC %s: %w", c.cfg.Address, err)
	}
	return nil
}

// session is one call's connection, with the token if it logged in.
type session struct {
	cfg    Config
	client *http.Client
	token  string
	login  string // path of the session to delete
}

// call opens a connection, runs f and closes everything.
func (c *Client) call(ctx context.Context, f func(*session) error) error {
	transport := &http.Transport{ // no proxy: the BMC's network is the node's own
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, //nolint:gosec // the pin below is stricter than any authority
			VerifyConnection:   c.pinned,
		},
		DisableCompression: true, MaxConnsPerHost: 1,
	}
	defer transport.CloseIdleConnections()
	s := &session{cfg: c.cfg, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if c.cfg.Session {
		if err := s.logIn(ctx); err != nil {
			return ended(ctx, err)
		}
		defer s.logOut(ctx)
	}
	return ended(ctx, f(s))
}

// ended names the end of the context instead of what followed from it.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	}
	return err
}

func (c *Client) pinned(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrCertificate
	}
	sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
	if got := hex.EncodeToString(sum[:]); !strings.EqualFold(got, c.cfg.Fingerprint) {
		return fmt.Errorf("%w: its SHA-256 is %s: if it was renewed, write that as fingerprint into ha/fence.cfg", ErrCertificate, got)
	}
	return nil
}

// system reads the ComputerSystem, and where its Reset action is posted to.
func (s *session) system(ctx context.Context) (fence.Reading, string, error) {
	path, err := s.systemPath(ctx)
	if err != nil {
		return fence.Reading{}, "", err
	}
	var doc struct {
		UUID       string
		PowerState string
		Actions    struct {
			Reset struct {
				Target string `json:"target"`
			} `json:"#ComputerSystem.Reset"`
		}
	}
	r := fence.Reading{Power: fence.Unknown, Asked: s.cfg.Now()}
	if err := s.do(ctx, http.MethodGet, path, nil, &doc); err != nil {
		return fence.Reading{}, "", err
	}
	r.Answered, r.UUID = s.cfg.Now(), doc.UUID
	switch doc.PowerState {
	case "On":
		r.Power = fence.On
	case "Off":
		r.Power = fence.Off
	}
	target := doc.Actions.Reset.Target
	if target == "" {
		target = strings.TrimSuffix(path, "/") + "/Actions/ComputerSystem.Reset"
	}
	return r, target, nil
}

// systemPath is the configured one, or the only member of the collection.
func (s *session) systemPath(ctx context.Context) (string, error) {
	if s.cfg.System != "" {
		return s.cfg.System, nil
	}
	var all struct {
		Members []struct {
			ID string `json:"@odata.id"`
		}
	}
	if err := s.do(ctx, http.MethodGet, "/redfish/v1/Systems", nil, &all); err != nil {
		return "", err
	}
	if len(all.Members) != 1 {
		return "", fmt.Errorf("%w: it has %d systems: write the path of the node's as system into ha/fence.cfg", ErrProtocol, len(all.Members))
	}
	return all.Members[0].ID, nil
}

func (s *session) logIn(ctx context.Context) error {
	body := map[string]string{"UserName": s.cfg.User, "Password": s.cfg.Password}
	resp, err := s.send(ctx, http.MethodPost, "/redfish/v1/SessionService/Sessions", body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if s.token = resp.Header.Get("X-Auth-Token"); s.token == "" {
		return fmt.Errorf("%w: a login without a token", ErrProtocol)
	}
	if at, err := url.Parse(resp.Header.Get("Location")); err == nil {
		s.login = at.Path
	}
	return nil
}

// logOut gives the session back; BMCs have few. A second is more than one that lives needs.
func (s *session) logOut(ctx context.Context) {
	if s.login == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.do(ctx, http.MethodDelete, s.login, nil, nil)
}

// do sends a request and reads the answer into out, if it is not nil.
func (s *session) do(ctx context.Context, method, path string, body, out any) error {
	resp, err := s.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrProtocol, path, err)
	}
	return nil
}

// send returns an answer with a status of success; the caller closes its body.
func (s *session) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		return nil, fmt.Errorf("%w: %q is no path on the BMC itself", ErrProtocol, path)
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	if body == nil {
		text = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+s.cfg.Address+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("OData-Version", "4.0")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	switch {
	case s.token != "":
		req.Header.Set("X-Auth-Token", s.token)
	case !s.cfg.Session:
		req.SetBasicAuth(s.cfg.User, s.cfg.Password)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		return nil, fmt.Errorf("%w: %s %s: %s", ErrAuth, method, path, resp.Status)
	}
	return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(why)))
}
