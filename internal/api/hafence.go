package api

import (
	"context"
	"strings"
)

func (s *server) haFenceRoutes() []route {
	keys := append(fenceParams(), text("delete"), text("digest"), text("secret"), oneOf("type", "ipmi", "redfish", "ceph"))
	return []route{
		here("GET /sauh/ha/fence", s.fenceFile),
		here("PUT /sauh/ha/fence", s.fenceFileSet, required(text("config")), text("digest")),
		here("GET /sauh/ha/fence/methods", func(ctx context.Context, _ *call) (any, error) { return orEmpty(s.b.Fencing.FenceMethods(ctx)) }),
		here("PUT /sauh/ha/fence/methods/{method}", s.fenceSet, keys...),
		here("DELETE /sauh/ha/fence/methods/{method}", func(ctx context.Context, c *call) (any, error) {
			return nil, s.b.Fencing.RemoveFenceMethod(ctx, c.args["method"])
		}),
		here("PUT /sauh/ha/fence/secrets/{name}", func(ctx context.Context, c *call) (any, error) {
			return nil, s.b.Fencing.SetFenceSecret(ctx, c.args["name"], c.args["secret"])
		}, required(text("secret"))),
		here("DELETE /sauh/ha/fence/secrets/{name}", func(ctx context.Context, c *call) (any, error) {
			return nil, s.b.Fencing.SetFenceSecret(ctx, c.args["name"], "")
		}),
		here("POST /sauh/ha/fence-test/{node}", s.fenceTest, flag("switch")),
	}
}

// fenceParams are the keys of a method; which of them one of its type has, the backend says.
func fenceParams() []param {
	var out []param
	for _, k := range strings.Fields("node nodes address user password-file uuid verify-gap cipher fingerprint system auth storages conf " +
		"order delay timeout ask-timeout disable comment") {
		out = append(out, text(k))
	}
	return out
}

func (s *server) fenceFile(ctx context.Context, _ *call) (any, error) {
	return s.b.Fencing.FenceFile(ctx)
}

func (s *server) fenceFileSet(ctx context.Context, c *call) (any, error) {
	return nil, s.b.Fencing.SetFenceFile(ctx, c.args["config"], c.args["digest"])
}

func (s *server) fenceSet(ctx context.Context, c *call) (any, error) {
	var keys []string
	for _, p := range fenceParams() {
		keys = append(keys, p.name)
	}
	e, err := edit(c.args, keys, "method", "type", "secret")
	if err != nil {
		return nil, err
	}
	return nil, s.b.Fencing.SetFenceMethod(ctx, Section{Type: c.args["type"], ID: c.args["method"]}, e, c.args["secret"])
}

func (s *server) fenceTest(ctx context.Context, c *call) (any, error) {
	list, err := s.b.Fencing.FenceTest(ctx, s.named(c), c.args.bool("switch"))
	return orEmpty(list, err)
}
