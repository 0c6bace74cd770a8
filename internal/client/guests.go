package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
)

// Guests lists the guests of the whole cluster.
func (c *Client) Guests(ctx context.Context) (list []model.Guest, err error) {
	return list, c.get(ctx, "/sauh/guests", nil, &list)
}

// Guest finds one guest, wherever it is. model.ErrNotFound if there is none.
func (c *Client) Guest(ctx context.Context, id model.VMID) (model.Guest, error) {
	list, err := c.Guests(ctx)
	if err != nil {
		return model.Guest{}, err
	}
	for _, g := range list {
		if g.VMID == id {
			return g, nil
		}
	}
	return model.Guest{}, model.Errorf(model.ErrNotFound, "guest %d does not exist: 'sauh vm list' shows those that do", id)
}

// GuestStatus is the state of a guest as its node sees it.
type GuestStatus struct {
	VMID      model.VMID `json:"vmid"`
	Name      string     `json:"name,omitempty"`
	Node      string     `json:"node"`
	Status    string     `json:"status"`
	QMPStatus string     `json:"qmpstatus,omitempty"`
	Lock      string     `json:"lock,omitempty"`
	PID       int        `json:"pid,omitempty"`
	CPUs      int        `json:"cpus"`
	MaxMemory int64      `json:"maxmem"`           // bytes
	Uptime    int64      `json:"uptime"`           // seconds
	Frozen    int        `json:"frozen,omitempty"` // 1 while the guard keeps it from running
	HA        struct {
		Managed int    `json:"managed"`
		State   string `json:"state,omitempty"`
	} `json:"ha"`
}

// GuestStatus asks a guest's node for its state.
func (c *Client) GuestStatus(ctx context.Context, node string, id model.VMID) (st GuestStatus, err error) {
	err = c.get(ctx, guestPath(node, id)+"/status/current", nil, &st)
	st.Node = node
	return st, err
}

func guestPath(node string, id model.VMID) string {
	return "/nodes/" + esc(node) + "/qemu/" + id.String()
}

// CreateGuest starts a task on node that makes a guest of keys in the Proxmox VE form.
func (c *Client) CreateGuest(ctx context.Context, node string, r api.CreateGuestRequest) (upid string, err error) {
	v := url.Values{"vmid": {r.VMID.String()}}
	for k, val := range r.Params {
		v.Set(k, val)
	}
	if r.Start {
		v.Set("start", "1")
	}
	return upid, c.post(ctx, "/nodes/"+esc(node)+"/qemu", v, &upid)
}

// GuestConfig returns a guest's configuration as text, and its digest.
func (c *Client) GuestConfig(ctx context.Context, node string, id model.VMID) (api.GuestConfig, error) {
	return c.config(ctx, guestPath(node, id)+"/config", node, id)
}

// StoredConfig is GuestConfig from the asked node's copy of the store, which needs no other node and may be stale.
func (c *Client) StoredConfig(ctx context.Context, node string, id model.VMID) (api.GuestConfig, error) {
	return c.config(ctx, "/sauh/guests/"+id.String()+"/config", node, id)
}

func (c *Client) config(ctx context.Context, path, node string, id model.VMID) (api.GuestConfig, error) {
	var raw map[string]json.RawMessage
	if err := c.get(ctx, path, nil, &raw); err != nil {
		return api.GuestConfig{}, err
	}
	cfg := api.GuestConfig{Values: map[string]string{}, Node: node}
	for k, v := range raw {
		s := string(v)
		if strings.HasPrefix(s, `"`) {
			if err := json.Unmarshal(v, &s); err != nil {
				return cfg, fmt.Errorf("decode %s of guest %d: %w", k, id, err)
			}
		}
		if k == "digest" {
			cfg.Digest = s
			continue
		}
		cfg.Values[k] = s
	}
	return cfg, nil
}

// SetGuestConfig changes and deletes keys; digest "" skips the check.
func (c *Client) SetGuestConfig(ctx context.Context, node string, id model.VMID, set map[string]string, del []string, digest string) error {
	v := values("delete", strings.Join(del, ","), "digest", digest)
	for k, val := range set {
		v.Set(k, val)
	}
	return c.put(ctx, guestPath(node, id)+"/config", v, nil)
}

// DestroyGuest deletes a guest and its volumes; purge also takes it out of high availability.
func (c *Client) DestroyGuest(ctx context.Context, node string, id model.VMID, purge bool) (upid string, err error) {
	return upid, c.del(ctx, guestPath(node, id), values("purge", b01(purge)), &upid)
}

// StartGuest starts a guest.
func (c *Client) StartGuest(ctx context.Context, node string, id model.VMID) (upid string, err error) {
	return upid, c.post(ctx, guestPath(node, id)+"/status/start", nil, &upid)
}

// StopGuest stops a guest at once, as if its power was cut.
func (c *Client) StopGuest(ctx context.Context, node string, id model.VMID) (upid string, err error) {
	return upid, c.post(ctx, guestPath(node, id)+"/status/stop", nil, &upid)
}

// ShutdownGuest asks a guest to shut down and, with force, stops it after timeout.
func (c *Client) ShutdownGuest(ctx context.Context, node string, id model.VMID, timeout time.Duration, force bool) (upid string, err error) {
	v := values("timeout", strconv.FormatInt(int64(timeout/time.Second), 10), "forceStop", b01(force))
	return upid, c.post(ctx, guestPath(node, id)+"/status/shutdown", v, &upid)
}

// MigrateGuest moves a guest to target, while it runs if online.
func (c *Client) MigrateGuest(ctx context.Context, node string, id model.VMID, target string, online bool) (upid string, err error) {
	return upid, c.post(ctx, guestPath(node, id)+"/migrate", values("target", target, "online", b01(online)), &upid)
}

// Console connects to a guest's serial port; ctx bounds the connecting alone, and the caller
// closes the port, which ends a read that waits. Reads return io.EOF when the guest's end was closed.
func (c *Client) Console(ctx context.Context, node string, id model.VMID) (io.ReadWriteCloser, error) {
	target := c.base + api.Prefix + "/sauh" + guestPath(node, id) + "/console"
	ws, resp, err := websocket.Dial(ctx, target, //nolint:bodyclose // the websocket owns it
		&websocket.DialOptions{HTTPClient: c.http, Subprotocols: []string{"binary"}})
	if err != nil {
		if resp != nil && resp.StatusCode >= http.StatusBadRequest {
			b, _ := io.ReadAll(resp.Body) // the phrase of the status line is enough without it
			return nil, refusal(resp, b)
		}
		return nil, c.broken(ctx, err)
	}
	ws.SetReadLimit(-1)
	return console{websocket.NetConn(context.WithoutCancel(ctx), ws, websocket.MessageBinary), ws}, nil
}

// console makes every end that the far side announces an end of file, and announces its own.
// NetConn's own Close cancels the pending read first, and that may break the connection before anything is announced.
type console struct {
	io.ReadWriter
	ws *websocket.Conn
}

// Close waits some seconds at most for the far side.
func (c console) Close() error { return c.ws.Close(websocket.StatusNormalClosure, "") }

func (c console) Read(p []byte) (int, error) {
	n, err := c.ReadWriter.Read(p)
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		err = io.EOF
	}
	return n, err
}
