package api

import (
	"context"
	"strings"
)

// OptionKeys are the keys of datacenter.cfg that work.
func OptionKeys() []string { return []string{"ha", "crs", "failures-to-tolerate"} }

// foreignOptions are keys that Proxmox VE has and that have no effect here: they are refused by name rather than as unknown.
func foreignOptions() []string {
	return strings.Fields("bwlimit consent-text console description email_from fencing http_proxy keyboard language location mac_prefix max_workers " +
		"migration migration_unsecure next-id notify registered-tags replication tag-style u2f user-tag-access webauthn")
}

func (s *server) optionRoutes() []route {
	params := []param{text("delete"), text("digest")}
	for _, k := range append(OptionKeys(), foreignOptions()...) {
		params = append(params, text(k))
	}
	return []route{
		here("GET /cluster/options", s.options),
		here("PUT /cluster/options", s.optionsSet, params...),
	}
}

// options has ha and crs taken apart, as Proxmox VE does.
func (s *server) options(ctx context.Context, _ *call) (any, error) {
	values, digest, err := s.b.Options.Options(ctx)
	if err != nil {
		return nil, err
	}
	out := obj{"digest": digest}
	for k, v := range values {
		out[k] = v
		if k == "ha" || k == "crs" {
			out[k] = apart(v)
		}
	}
	return out, nil
}

// apart is a property string as an object; its flags are numbers.
func apart(v string) any {
	o := obj{}
	for part := range strings.SplitSeq(v, ",") {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			return v
		}
		o[key] = value
		if key == "ha-auto-rebalance" || key == "ha-rebalance-on-start" || strings.HasSuffix(key, "-threshold") ||
			strings.HasSuffix(key, "-margin") || strings.HasSuffix(key, "-duration") {
			o[key] = numberOf(value)
		}
	}
	return o
}

func (s *server) optionsSet(ctx context.Context, c *call) (any, error) {
	for _, k := range foreignOptions() {
		if c.args.has(k) {
			return nil, invalidParam(k, "has no effect in this version, so it is refused: only %s have", strings.Join(OptionKeys(), ", "))
		}
	}
	e, err := edit(c.args, OptionKeys())
	if err != nil {
		return nil, err
	}
	return nil, s.b.Options.SetOptions(ctx, e)
}
