package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// sight is the cluster as this node's manager sees it.
type sight struct {
	node   string
	params ha.Params
	view   func() ha.View
}

// picture is the cluster as the manager would judge it now.
func (s sight) picture() ha.Picture { return s.of(s.view()) }

func (s sight) of(v ha.View) ha.Picture { return ha.Look(s.node, s.params, v) }

// haServices is what a person wants done with guests that are HA resources. It implements api.HAServices.
type haServices struct {
	*resources
	sight
}

// haNodes is what a person wants of nodes and of the cluster. It implements api.HANodes.
type haNodes struct {
	st     store.Store
	roster roster
	// end begins the orderly end of this node.
	end func(ctx context.Context, reboot bool) error
	// drain is the same without the machine's own end; it returns when that may come.
	drain func(ctx context.Context, reboot bool) error
}

// resource is the id of a guest that is an HA resource.
func (h *resources) resource(sid string) (model.VMID, error) {
	id, err := pveconf.ParseSID(sid)
	if err != nil {
		return 0, err
	}
	all, err := h.known()
	if err != nil {
		return 0, err
	}
	if findResource(all, id) < 0 {
		return 0, noResource(id)
	}
	return id, nil
}

// Move implements api.HAServices. The manager judges the wish anew when it acts on it.
func (h *haServices) Move(ctx context.Context, sid, kind, node string) (api.HAMove, error) {
	id, err := h.resource(sid)
	if err != nil {
		return api.HAMove{}, err
	}
	if _, err := h.roster.node(node); err != nil {
		return api.HAMove{}, err
	}
	out := api.HAMove{SID: id.SID(), Node: node}
	p, c := h.picture(), ha.Command{Kind: ha.CommandKind(kind), Target: node}
	refusal, with := p.Refusal(id, c)
	if refusal != "" {
		for _, b := range p.Blocks(id, node) {
			cause := "resource-affinity"
			if b.ByNodes {
				cause = "node-affinity"
			}
			out.Blocking = append(out.Blocking, api.HABlocking{SID: b.SID, Cause: cause})
		}
		if len(out.Blocking) > 0 {
			return out, nil
		}
		return out, model.Errorf(model.ErrBusy, "%s cannot %s to %s: %s", id.SID(), kind, node, refusal)
	}
	out.With = with
	what := fmt.Sprintf("ask that %s %s to %s", id.SID(), kind, node)
	return out, editRecord(ctx, h.st, what, model.HACommandPrefix+id.SID(), func([]byte) ([]byte, error) { return mustJSON(c), nil })
}

// StopService implements api.HAServices: the requested state and the time that the stop may take are one transaction.
func (h *haServices) StopService(ctx context.Context, sid string, timeout time.Duration) error {
	id, err := h.resource(sid)
	if err != nil {
		return err
	}
	if h.picture().Disarmed(id) {
		return model.Errorf(model.ErrBusy, "%s cannot be stopped by HA: HA is disarmed, and it would go down when that ends", id.SID())
	}
	edit := resourcesEdit("stop "+id.SID(), "", func(f *pveconf.SectionFile) error {
		i := findSection(*f, "vm", id.String())
		if i < 0 {
			return noResource(id)
		}
		return apply(&f.Sections[i], api.Edit{Set: map[string]string{"state": "stopped"}}, pveconf.HAResourceFromSection)
	})
	command := mustJSON(ha.Command{Kind: ha.CommandStop, TimeoutSeconds: int(timeout / time.Second)})
	return editSectionsAnd(ctx, h.st, edit, model.HACommandPrefix+id.SID(), command)
}

// request changes what persons want of a node; a record that asks for nothing is deleted.
func (h *haNodes) request(ctx context.Context, what, node string, change func(*ha.NodeRequest)) error {
	if _, err := h.roster.node(node); err != nil {
		return err
	}
	return editRecord(ctx, h.st, what, model.HARequestPrefix+node, func(old []byte) ([]byte, error) {
		var r ha.NodeRequest
		if len(old) > 0 {
			if err := json.Unmarshal(old, &r); err != nil {
				return nil, fmt.Errorf("%s: its record: %w", what, err)
			}
		}
		change(&r)
		if r == (ha.NodeRequest{}) {
			return nil, nil
		}
		return mustJSON(r), nil
	})
}

// Maintenance implements api.HANodes.
func (h *haNodes) Maintenance(ctx context.Context, node string, on bool) error {
	what := "end the maintenance of " + node
	if on {
		what = "put " + node + " into maintenance"
	}
	return h.request(ctx, what, node, func(r *ha.NodeRequest) { r.Maintenance = on })
}

// Disarm implements api.HANodes.
func (h *haNodes) Disarm(ctx context.Context, d api.HADisarm) error {
	mode, until := ha.Disarm(d.Mode), int64(0)
	if mode != ha.DisarmFreeze && mode != ha.DisarmIgnore {
		return model.Invalidf("mode", "%q is not allowed: use freeze or ignore", d.Mode)
	}
	now := time.Now()
	if d.For > 0 {
		until = now.Add(d.For).Unix()
	}
	if d.Node != "" {
		return h.request(ctx, "disarm "+d.Node, d.Node, func(r *ha.NodeRequest) { r.Disarm, r.Until, r.Since = mode, until, now.Unix() })
	}
	return editRecord(ctx, h.st, "disarm the cluster", model.HAModeKey, func([]byte) ([]byte, error) {
		return mustJSON(ha.Mode{Disarm: mode, Until: until, Since: now.Unix()}), nil
	})
}

// Arm implements api.HANodes.
func (h *haNodes) Arm(ctx context.Context, node string) error {
	if node != "" {
		return h.request(ctx, "arm "+node, node, func(r *ha.NodeRequest) { r.Disarm, r.Until, r.Since = ha.Armed, 0, 0 })
	}
	return editRecord(ctx, h.st, "arm the cluster", model.HAModeKey, func([]byte) ([]byte, error) { return nil, nil })
}

// maxLabel bounds the name of a rack or a site.
const maxLabel = 63

func isLabel(s string) bool {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}
	return len(s) <= maxLabel && !strings.ContainsFunc(s, odd)
}

// Label implements api.HANodes. Rules that contradict one another by it are dropped and shown by HAStatus.
func (h *haNodes) Label(ctx context.Context, node string, rack, site *string) error {
	for param, label := range map[string]*string{"rack": rack, "site": site} {
		if label != nil && !isLabel(*label) {
			return model.Invalidf(param, "%q is no name of a %s: use letters, digits, '-', '_' and '.', at most %d", *label, param, maxLabel)
		}
	}
	if _, err := h.roster.node(node); err != nil {
		return err
	}
	return editRecord(ctx, h.st, "label "+node, model.NodePrefix+node, func(old []byte) ([]byte, error) {
		var n model.Node
		if err := json.Unmarshal(old, &n); err != nil {
			return nil, fmt.Errorf("label %s: its record: %w", node, err)
		}
		if rack != nil {
			n.Rack = *rack
		}
		if site != nil {
			n.Site = *site
		}
		return mustJSON(n), nil
	})
}

// EndNode implements api.HANodes.
func (h *haNodes) EndNode(ctx context.Context, reboot bool) error {
	return h.end(ctx, reboot)
}

// DrainNode implements api.HANodes.
func (h *haNodes) DrainNode(ctx context.Context, reboot bool) error {
	return h.drain(ctx, reboot)
}

// commandOf is a command that waits, as a sentence; "" for none.
func commandOf(s mirror.Snapshot, sid string) string {
	c, err := mirror.Get[ha.Command](s, model.HACommandPrefix+sid)
	switch {
	case err != nil || c.Revision == 0:
		return ""
	case c.Value.Kind == ha.CommandStop:
		return fmt.Sprintf("stop within %d s", c.Value.TimeoutSeconds)
	}
	return string(c.Value.Kind) + " to " + c.Value.Target
}
