package api

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

func (s *server) haRoutes() []route {
	all := append(s.haResourceRoutes(), s.haRuleRoutes()...)
	all = append(all, s.haStatusRoutes()...)
	all = append(all, s.haControlRoutes()...)
	all = append(all, s.haFenceRoutes()...)
	return append(all, s.optionRoutes()...)
}

func (s *server) haResourceRoutes() []route {
	// group is there to be refused by name: Proxmox VE 9 has rules instead.
	keys := []param{
		oneOf("state", "started", "stopped", "enabled", "disabled", "ignored"), text("comment"), integer("max_restart", 0, math.MaxInt32),
		integer("max_relocate", 0, math.MaxInt32), flag("failback"), flag("auto-rebalance"), text("group"),
		text("order"), text("after"), text("reset-on"),
	}
	change := append([]param{text("delete"), text("digest")}, keys...)
	return []route{
		here("GET /cluster/ha", index("groups", "resources", "rules", "status")),
		here("GET /cluster/ha/resources", s.haList, oneOf("type", "ct", "vm")),
		here("POST /cluster/ha/resources", s.haAdd, append([]param{required(text("sid")), oneOf("type", "ct", "vm")}, keys...)...),
		here("GET /cluster/ha/resources/{sid}", s.haGet),
		here("PUT /cluster/ha/resources/{sid}", s.haSet, change...),
		here("DELETE /cluster/ha/resources/{sid}", s.haRemove, flag("purge")),
		here("POST /cluster/ha/resources/{sid}/migrate", s.haMove("migrate"), required(text("node"))),
		here("POST /cluster/ha/resources/{sid}/relocate", s.haMove("relocate"), required(text("node"))),
	}
}

// index lists what is below a path.
func index(names ...string) handler {
	return func(context.Context, *call) (any, error) {
		out := []obj{}
		for _, n := range names {
			out = append(out, obj{"id": n, "name": n, "subdir": n})
		}
		return out, nil
	}
}

// parseSID reads "vm:100" or "100".
func parseSID(s string) (string, error) {
	id, err := pveconf.ParseSID(s)
	if err != nil {
		return "", invalidParam("sid", "invalid format - unable to parse resource ID '%s'; use vm:<vmid>", s)
	}
	return id.SID(), nil
}

func noResource(sid string) error { return notFoundf("no such resource '%s'", sid) }

// resourceError gives what the backend says of a resource the words that clients know.
func resourceError(sid string, err error) error {
	if errors.Is(err, model.ErrNotFound) {
		return noResource(sid)
	}
	return err
}

func (s *server) haResource(ctx context.Context, sid string) (HAResource, error) {
	list, err := s.b.HA.HAResources(ctx)
	if err != nil {
		return HAResource{}, err
	}
	for _, r := range list {
		if r.SID == sid {
			return r, nil
		}
	}
	return HAResource{}, noResource(sid)
}

// haRow has what stands in the file, and the requested state always.
func haRow(r HAResource) obj {
	o := typed(r.Values, "max_restart", "max_relocate", "failback", "auto-rebalance", "order")
	o["sid"], o["state"] = r.SID, r.State
	o["type"], _, _ = strings.Cut(r.SID, ":")
	if r.Comment != "" {
		o["comment"] = r.Comment
	}
	if r.Digest != "" {
		o["digest"] = r.Digest
	}
	return o
}

// typed are the values of a section; those named are numbers, and true and false count as such.
func typed(values map[string]string, numbers ...string) obj {
	o := obj{}
	for k, v := range values {
		o[k] = v
		for _, n := range numbers {
			if n == k {
				o[k] = numberOf(v)
			}
		}
	}
	return o
}

// numberOf reads a number, or one of Proxmox VE's spellings of true and false; a key that stands alone is true.
func numberOf(v string) any {
	switch strings.ToLower(v) {
	case "", "yes", "on", "true":
		return 1
	case "no", "off", "false":
		return 0
	}
	if n, err := strconv.Atoi(v); err == nil {
		return n
	}
	return v
}

func (s *server) haList(ctx context.Context, c *call) (any, error) {
	list, err := s.b.HA.HAResources(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, r := range list {
		if row := haRow(r); c.args["type"] == "" || c.args["type"] == row["type"] {
			out = append(out, row)
		}
	}
	return out, nil
}

func (s *server) haGet(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	r, err := s.haResource(ctx, sid)
	if err != nil {
		return nil, err
	}
	return haRow(r), nil
}

// requestedState reads the state; "enabled" is an old name of "started".
func requestedState(a args, def string) string {
	switch st := a["state"]; st {
	case "":
		return def
	case "enabled":
		return "started"
	default:
		return st
	}
}

// groupsAreRules refuses the form that preceded rules.
func groupsAreRules(param string) error {
	return invalidParam(param, "HA groups have been replaced by rules: make a node-affinity rule with 'sauh ha rules add' or POST /cluster/ha/rules")
}

// settings are the keys of a section among the arguments; those named are none.
func settings(a args, not ...string) map[string]string {
	out := map[string]string{}
	for k, v := range a {
		out[k] = v
	}
	for _, k := range not {
		delete(out, k)
	}
	return out
}

// edit reads what a PUT changes. Only keys of the section can be deleted.
func edit(a args, keys []string, not ...string) (Edit, error) {
	e := Edit{Set: settings(a, append([]string{"delete", "digest"}, not...)...), Delete: words(a["delete"]), Digest: a["digest"]}
	for _, key := range e.Delete {
		known := false
		for _, k := range keys {
			known = known || k == key
		}
		if _, both := e.Set[key]; !known || both {
			if both {
				return e, invalidParam("delete", "unable to set and delete '%s' at the same time", key)
			}
			return e, invalidParam("delete", "unknown setting '%s'", key)
		}
	}
	return e, nil
}

// words splits a list as Proxmox VE does.
func words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ';' || r == ' ' || r == 0 })
}

// checkLists refuses a list of nothing but separators. One that is empty is none, which is another thing.
func checkLists(a args, keys ...string) error {
	for _, k := range keys {
		if strings.TrimSpace(a[k]) != "" && len(words(a[k])) == 0 {
			return invalidParam(k, "'%s' names nothing: separate words by commas, or leave it out", a[k])
		}
	}
	return nil
}

func resourceKeys() []string {
	return []string{"state", "comment", "max_restart", "max_relocate", "failback", "auto-rebalance", "group", "order", "after", "reset-on"}
}

func (s *server) haAdd(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	if c.args["type"] == "ct" {
		return nil, invalidParam("type", "types does not match: '%s' is a vm", sid)
	}
	if c.args.has("group") {
		return nil, groupsAreRules("group")
	}
	if err := checkLists(c.args, "after", "reset-on"); err != nil {
		return nil, err
	}
	r := HAResource{
		SID: sid, State: requestedState(c.args, "started"), Comment: c.args["comment"],
		Values: settings(c.args, "sid", "type", "state", "comment"),
	}
	for _, key := range []string{"after", "reset-on"} { // an empty one is none
		if strings.TrimSpace(r.Values[key]) == "" {
			delete(r.Values, key)
		}
	}
	err = s.b.HA.HAAdd(ctx, r)
	if errors.Is(err, model.ErrExists) {
		return nil, existsf("resource ID '%s' already defined", sid)
	}
	return nil, err
}

func (s *server) haSet(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	if c.args.has("group") {
		return nil, groupsAreRules("group")
	}
	if err := checkLists(c.args, "after", "reset-on"); err != nil {
		return nil, err
	}
	e, err := edit(c.args, resourceKeys(), "sid")
	if err != nil {
		return nil, err
	}
	if e.Set["state"] == "enabled" {
		e.Set["state"] = "started"
	}
	for _, key := range []string{"comment", "after", "reset-on"} { // an empty one is none
		if v, ok := e.Set[key]; ok && strings.TrimSpace(v) == "" {
			delete(e.Set, key)
			e.Delete = append(e.Delete, key)
		}
	}
	return nil, resourceError(sid, s.b.HA.HASet(ctx, sid, e))
}

func (s *server) haRemove(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	purge := !c.args.has("purge") || c.args.bool("purge")
	return nil, resourceError(sid, s.b.HA.HARemove(ctx, sid, purge))
}

// haMove asks that a guest go elsewhere. Where rules forbid it the answer names those in its way, and nothing was asked.
func (s *server) haMove(kind string) handler {
	return func(ctx context.Context, c *call) (any, error) {
		sid, err := parseSID(c.args["sid"])
		if err != nil {
			return nil, err
		}
		if _, err := s.haResource(ctx, sid); err != nil {
			return nil, err
		}
		m, err := s.b.Services.Move(ctx, sid, kind, c.args["node"])
		if err != nil {
			return nil, err
		}
		o := obj{"sid": m.SID, "requested-node": m.Node}
		if len(m.With) > 0 {
			o["comigrated-resources"] = m.With
		}
		if len(m.Blocking) > 0 {
			o["blocking-resources"] = m.Blocking
		}
		return o, nil
	}
}
