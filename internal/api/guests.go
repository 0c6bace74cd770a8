package api

import (
	"context"
	"errors"
	"math"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

func (s *server) guestRoutes() []route {
	return []route{
		here("GET /sauh/guests", func(ctx context.Context, _ *call) (any, error) { return orEmpty(s.b.Guests.List(ctx)) }),
		here("GET /sauh/guests/{vmid}/config", s.guestStored),
		onNode("GET /nodes/{node}/qemu", s.guestList, flag("full")),
		withGuestKeys(onNode("POST /nodes/{node}/qemu", s.guestCreate, required(vmidParam()), flag("start"))),
		onNode("GET /nodes/{node}/qemu/{vmid}", s.guestIndex),
		onNode("DELETE /nodes/{node}/qemu/{vmid}", s.guestDestroy, flag("purge"), flag("destroy-unreferenced-disks")),
		onNode("GET /nodes/{node}/qemu/{vmid}/config", s.guestConfig, flag("current"), text("snapshot")),
		withGuestKeys(onNode("PUT /nodes/{node}/qemu/{vmid}/config", s.guestSetConfig, text("delete"), text("digest"))),
		withGuestKeys(onNode("POST /nodes/{node}/qemu/{vmid}/config", s.guestSetConfig, text("delete"), text("digest"),
			integer("background_delay", 1, 30))),
		onNode("GET /nodes/{node}/qemu/{vmid}/status/current", s.guestStatus),
		onNode("POST /nodes/{node}/qemu/{vmid}/status/start", s.guestStart, count("timeout")),
		onNode("POST /nodes/{node}/qemu/{vmid}/status/stop", s.guestStop, count("timeout")),
		onNode("POST /nodes/{node}/qemu/{vmid}/status/shutdown", s.guestShutdown,
			integer("timeout", 0, int64(math.MaxInt64/time.Second)), flag("forceStop")),
		onNode("POST /nodes/{node}/qemu/{vmid}/migrate", s.guestMigrate, required(text("target")), flag("online")),
		s.consoleRoute(),
	}
}

// orEmpty turns a nil slice into one that prints as [].
func orEmpty[T any](list []T, err error) (any, error) {
	if list == nil {
		list = []T{}
	}
	return list, err
}

// noConfig is the text by which clients know that a guest is not there (any more).
func noConfig(node string, id model.VMID) error {
	return notFoundf("Configuration file '%s' does not exist", model.GuestConfigPath(node, id))
}

// owned checks that the guest is this node's, so that a guest that moved away is
// reported the same way as one that never was.
func (s *server) owned(ctx context.Context, c *call) (model.VMID, error) {
	id := c.args.vmid()
	owner, err := s.b.Guests.Owner(ctx, id)
	if errors.Is(err, model.ErrNotFound) {
		return id, noConfig(c.node, id)
	}
	if err != nil {
		return id, err
	}
	if s.b.Peers != nil && owner != s.b.Peers.LocalNode() {
		return id, noConfig(c.node, id)
	}
	return id, nil
}

func (s *server) guestList(ctx context.Context, _ *call) (any, error) {
	guests, err := s.b.Guests.ListLocal(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, g := range guests {
		out = append(out, guestRow(g))
	}
	return out, nil
}

// guestRow is what all lists say of a guest. Keys without a value stay away, as clients expect.
func guestRow(g model.Guest) obj {
	o := obj{"vmid": g.VMID, "status": g.Status, "cpus": g.CPUs, "maxmem": g.MemoryMiB << 20, "uptime": g.Uptime}
	for key, v := range map[string]string{"name": g.Name, "qmpstatus": g.QMPStatus, "lock": g.Lock, "hastate": g.HA, "reason": g.Reason} {
		if v != "" {
			o[key] = v
		}
	}
	if g.PID != 0 {
		o["pid"] = g.PID
	}
	if g.Frozen { // by the guard: Sauh's own key
		o["frozen"] = 1
	}
	return o
}

func (s *server) guestIndex(ctx context.Context, c *call) (any, error) {
	if _, err := s.owned(ctx, c); err != nil {
		return nil, err
	}
	return []obj{{"subdir": "config"}, {"subdir": "status"}, {"subdir": "migrate"}}, nil
}

func (s *server) guestCreate(ctx context.Context, c *call) (any, error) {
	id := c.args.vmid()
	if owner, err := s.b.Guests.Owner(ctx, id); err == nil {
		return nil, existsf("unable to create VM %d - VM %d already exists on node '%s'", id, id, owner)
	}
	params := map[string]string{}
	for k, v := range c.args {
		if _, ok := guestKey(k); ok {
			params[k] = v
		}
	}
	return s.b.Guests.Create(ctx, CreateGuestRequest{VMID: id, Params: params, Start: c.args.bool("start")})
}

// guestDestroy refuses to delete what high availability would miss, unless purge says that it shall go from there too.
func (s *server) guestDestroy(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	g, err := s.b.Guests.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if g.Status == "running" {
		e := errorf(http.StatusInternalServerError, "VM %d is running - destroy failed", id)
		e.kind = KindOf(model.ErrBusy)
		return nil, e
	}
	_, err = s.haResource(ctx, id.SID())
	if err != nil && !errors.Is(err, model.ErrNotFound) {
		return nil, err
	}
	if err == nil {
		if !c.args.bool("purge") {
			return nil, errorf(http.StatusInternalServerError,
				"unable to remove VM %d - used in HA resources and purge parameter not set: `sauh vm destroy %d --purge` takes it out of them, too", id, id)
		}
		if err := s.b.HA.HARemove(ctx, id.SID(), true); err != nil {
			return nil, err
		}
	}
	return s.b.Guests.Destroy(ctx, id)
}

// guestConfig prints numbers and booleans as JSON numbers, everything else as strings.
func (s *server) guestConfig(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	if snap := c.args["snapshot"]; snap != "" {
		return nil, notFoundf("snapshot '%s' does not exist", snap)
	}
	return s.storedConfig(ctx, id)
}

// guestStored is any guest's configuration as this node's copy of the store has it, also while its node is off.
func (s *server) guestStored(ctx context.Context, c *call) (any, error) {
	return s.storedConfig(ctx, c.args.vmid())
}

func (s *server) storedConfig(ctx context.Context, id model.VMID) (any, error) {
	cfg, err := s.b.Guests.Config(ctx, id)
	if err != nil {
		return nil, err
	}
	out := obj{"digest": cfg.Digest}
	for k, v := range cfg.Values {
		if k == "template" && v == "0" {
			continue // clients take any value for "is a template"
		}
		out[k] = typedValue(k, v)
	}
	return out, nil
}

func typedValue(key, value string) any {
	kind, _ := guestKey(key)
	switch kind {
	case kindInt, kindBool:
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return n
		}
	case kindNumber:
		if n, err := strconv.ParseFloat(value, 64); err == nil && !math.IsNaN(n) && !math.IsInf(n, 0) {
			return n
		}
	case kindText:
	}
	return value
}

func (s *server) guestSetConfig(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	set := map[string]string{}
	for k, v := range c.args {
		if _, ok := guestKey(k); ok {
			set[k] = v
		}
	}
	del, err := deleteKeys(c.args["delete"], set)
	if err != nil {
		return nil, err
	}
	if len(set) == 0 && len(del) == 0 {
		return nil, errorf(http.StatusInternalServerError, "no options specified")
	}
	err = s.b.Guests.SetConfig(ctx, id, set, del, c.args["digest"])
	if errors.Is(err, model.ErrConflict) {
		e := errorf(http.StatusInternalServerError, "detected modified configuration - file changed by other user? Try again.")
		e.kind = KindOf(model.ErrConflict)
		return nil, e
	}
	return nil, err
}

// deleteKeys splits a list of keys as Proxmox VE does: at commas, semicolons and blanks.
func deleteKeys(list string, set map[string]string) ([]string, error) {
	keys := strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(",; \t", r) })
	for _, k := range keys {
		if _, known := guestKey(k); !known {
			return nil, invalidParam("delete", "unknown setting '%s'", k)
		}
		if _, both := set[k]; both {
			return nil, invalidParam("delete", "you can't use '%s' and -delete %s at the same time", k, k)
		}
	}
	sort.Strings(keys)
	return keys, nil
}

func (s *server) guestStatus(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	g, err := s.b.Guests.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	o := guestRow(g)
	delete(o, "hastate")
	ha := obj{"managed": 0}
	r, err := s.haResource(ctx, id.SID())
	switch {
	case err == nil:
		ha = obj{"managed": 1, "state": r.State}
	case !errors.Is(err, model.ErrNotFound):
		return nil, err
	}
	o["ha"] = ha
	return o, nil
}

func (s *server) guestStart(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.b.Guests.Start(ctx, id)
}

func (s *server) guestStop(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.b.Guests.Stop(ctx, id)
}

// defaultShutdown is how long a guest has to shut down, as in Proxmox VE.
const defaultShutdown = 60 * time.Second

func (s *server) guestShutdown(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(c.args.int("timeout", int64(defaultShutdown/time.Second))) * time.Second
	return s.b.Guests.Shutdown(ctx, id, timeout, c.args.bool("forceStop"))
}

func (s *server) guestMigrate(ctx context.Context, c *call) (any, error) {
	id, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	target := c.args["target"]
	if model.ValidateNodeName(target) != nil {
		return nil, invalidParam("target", "invalid format - value does not look like a valid node name")
	}
	if target == c.node {
		return nil, invalidParam("target", "target is local node.")
	}
	return s.b.Guests.Migrate(ctx, id, target, c.args.bool("online"))
}
