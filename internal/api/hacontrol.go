package api

import (
	"context"
	"time"
)

// Limits of what a person can ask for.
const (
	maxStop   = 24 * time.Hour
	maxDisarm = 30 * 24 * time.Hour
)

func (s *server) haControlRoutes() []route {
	modes := []string{"freeze", "ignore"}
	disarm := integer("for", 1, int64(maxDisarm/time.Second))
	return []route{
		here("POST /cluster/ha/status/arm-ha", func(ctx context.Context, _ *call) (any, error) { return nil, s.b.Nodes.Arm(ctx, "") }),
		here("POST /cluster/ha/status/disarm-ha", s.haDisarm, required(oneOf("resource-mode", modes...)), disarm),
		here("POST /sauh/ha/resources/{sid}/stop", s.haStop, required(integer("timeout", 0, int64(maxStop/time.Second)))),
		here("PUT /sauh/ha/nodes/{node}/maintenance", s.haMaintenance(true)),
		here("DELETE /sauh/ha/nodes/{node}/maintenance", s.haMaintenance(false)),
		here("PUT /sauh/ha/nodes/{node}/disarm", s.haDisarm, required(oneOf("resource-mode", modes...)), disarm),
		here("DELETE /sauh/ha/nodes/{node}/disarm", func(ctx context.Context, c *call) (any, error) {
			return nil, s.b.Nodes.Arm(ctx, s.named(c))
		}),
		here("PUT /sauh/ha/nodes/{node}/labels", s.haLabel, text("rack"), text("site")),
		onNode("POST /nodes/{node}/status", s.nodeCommand, required(oneOf("command", "reboot", "shutdown"))),
		here("POST /sauh/drain", s.drain, flag("reboot")),
	}
}

// named is the node of the path; localhost is the one that was asked.
func (s *server) named(c *call) string {
	if c.args["node"] == localhost {
		return s.localName("")
	}
	return c.args["node"]
}

func (s *server) haDisarm(ctx context.Context, c *call) (any, error) {
	return nil, s.b.Nodes.Disarm(ctx, HADisarm{
		Mode: c.args["resource-mode"], Node: s.named(c), For: time.Duration(c.args.int("for", 0)) * time.Second,
	})
}

// haStop has no default for the time that the guest gets: one that was forgotten must not cut its power.
func (s *server) haStop(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(c.args.int("timeout", 0)) * time.Second
	return nil, resourceError(sid, s.b.Services.StopService(ctx, sid, timeout))
}

func (s *server) haMaintenance(on bool) handler {
	return func(ctx context.Context, c *call) (any, error) {
		return nil, s.b.Nodes.Maintenance(ctx, s.named(c), on)
	}
}

func (s *server) haLabel(ctx context.Context, c *call) (any, error) {
	var rack, site *string
	if v, ok := c.args["rack"]; ok {
		rack = &v
	}
	if v, ok := c.args["site"]; ok {
		site = &v
	}
	return nil, s.b.Nodes.Label(ctx, s.named(c), rack, site)
}

func (s *server) nodeCommand(ctx context.Context, c *call) (any, error) {
	return nil, s.b.Nodes.EndNode(ctx, c.args["command"] == "reboot")
}

// drain answers when this node's machine may go down, which may take as long as its guests' moves.
func (s *server) drain(ctx context.Context, c *call) (any, error) {
	return nil, s.b.Nodes.DrainNode(ctx, c.args.bool("reboot"))
}
