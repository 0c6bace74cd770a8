package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

func (s *server) haRoutes() []route {
	state := oneOf("state", "started", "stopped", "enabled", "disabled", "ignored")
	return []route{
		here("GET /cluster/ha/resources", s.haList, oneOf("type", "ct", "vm")),
		here("POST /cluster/ha/resources", s.haAdd, required(text("sid")), oneOf("type", "ct", "vm"), state, text("comment")),
		here("GET /cluster/ha/resources/{sid}", s.haGet),
		here("PUT /cluster/ha/resources/{sid}", s.haSet, state, text("comment"), text("delete")),
		here("DELETE /cluster/ha/resources/{sid}", s.haRemove, flag("purge")),
		here("GET /cluster/ha/status/current", s.haCurrent),
		here("GET /sauh/ha/status", func(ctx context.Context, _ *call) (any, error) { return s.b.HA.HAStatus(ctx) }),
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

func haRow(r HAResource) obj {
	o := obj{"sid": r.SID, "type": "vm", "state": r.State}
	if r.Comment != "" {
		o["comment"] = r.Comment
	}
	return o
}

func (s *server) haList(ctx context.Context, c *call) (any, error) {
	list, err := s.b.HA.HAResources(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, r := range list {
		if c.args["type"] != "ct" {
			out = append(out, haRow(r))
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

func (s *server) haAdd(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	if c.args["type"] == "ct" {
		return nil, invalidParam("type", "types does not match: '%s' is a vm", sid)
	}
	err = s.b.HA.HAAdd(ctx, HAResource{SID: sid, State: requestedState(c.args, "started"), Comment: c.args["comment"]})
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
	r, err := s.haResource(ctx, sid)
	if err != nil {
		return nil, err
	}
	for _, key := range strings.FieldsFunc(c.args["delete"], func(r rune) bool { return r == ',' || r == ';' || r == ' ' }) {
		switch key {
		case "comment":
			r.Comment = ""
		case "state":
			r.State = "started"
		default:
			return nil, invalidParam("delete", "unknown setting '%s'", key)
		}
	}
	r.State = requestedState(c.args, r.State)
	if c.args.has("comment") {
		r.Comment = c.args["comment"]
	}
	err = s.b.HA.HASet(ctx, HAResource{SID: r.SID, State: r.State, Comment: r.Comment})
	if errors.Is(err, model.ErrNotFound) {
		return nil, noResource(sid)
	}
	return nil, err
}

func (s *server) haRemove(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	err = s.b.HA.HARemove(ctx, sid)
	if errors.Is(err, model.ErrNotFound) {
		return nil, noResource(sid)
	}
	return nil, err
}

// haCurrent has the order of Proxmox VE: quorum, master, one lrm a node, the services.
func (s *server) haCurrent(ctx context.Context, c *call) (any, error) {
	st, err := s.b.HA.HAStatus(ctx)
	if err != nil {
		return nil, err
	}
	quorum := obj{"id": "quorum", "type": "quorum", "node": s.localName(""), "quorate": b01(st.Quorate), "status": "OK"}
	if !st.Quorate {
		quorum["status"] = "No quorum on node '" + s.localName("") + "'!"
	}
	out := []obj{quorum}
	now := time.Now()
	stamp := now.Format(time.ANSIC)
	if st.Manager != "" {
		out = append(out, obj{
			"id": "master", "type": "master", "node": st.Manager, "timestamp": now.Unix(),
			"status": fmt.Sprintf("%s (active, %s)", st.Manager, stamp),
		})
	}
	for _, n := range st.Nodes {
		heard := now.Add(-time.Duration(n.SilenceMS) * time.Millisecond)
		out = append(out, obj{
			"id": "lrm:" + n.Node, "type": "lrm", "node": n.Node, "timestamp": heard.Unix(),
			"status": fmt.Sprintf("%s (%s, %s)", n.Node, lrmState(n.State), heard.Format(time.ANSIC)),
		})
	}
	for _, r := range st.Services {
		out = append(out, obj{
			"id": "service:" + r.SID, "type": "service", "sid": r.SID, "node": r.Node, "state": r.Status, "request_state": r.State,
			"crm_state": r.Status, "status": fmt.Sprintf("%s (%s, %s)", r.SID, r.Node, r.Status),
		})
	}
	return out, nil
}

// lrmState says a node's state in the words of Proxmox VE.
func lrmState(state string) string {
	switch state {
	case "online":
		return "active"
	case "suspect":
		return "old timestamp - dead?"
	case "fenced":
		return "fenced"
	}
	return "idle"
}
