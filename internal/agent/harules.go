package agent

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

const (
	haRulesKey    = model.ConfigPrefix + "ha/rules.cfg"
	haGroupsKey   = model.ConfigPrefix + "ha/groups.cfg"
	datacenterKey = model.ConfigPrefix + "datacenter.cfg"
)

// rulebook keeps what datacenter.cfg and the rules mean, compiled once a change. A file that cannot be read leaves
// what it said before in force; only where nothing was known before, nothing may be decided.
type rulebook struct {
	mu     sync.Mutex
	policy ha.Policy // guarded by mu, as all below
	known  bool      // policy was read
	parsed bool      // rules were read
	last   ruleSource
	set    *rules.Set
}

// ruleSource is what a set of rules was compiled from.
type ruleSource struct {
	rules, groups, resources int64 // revisions
	nodes                    string
}

// read is the policy and the rules in force.
func (b *rulebook) read(s mirror.Snapshot, res []pveconf.HAResource, nodes map[string]mirror.Record[model.Node]) (ha.Policy, *rules.Set, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, err := policyIn(s)
	if err != nil {
		if last, lastErr := policyOf(s, readableKey(datacenterKey)); lastErr == nil && last.known {
			p, err = last.policy, nil
		}
	}
	if err == nil {
		b.policy, b.known = p, true
	} else if !b.known {
		return ha.Policy{}, nil, err
	}
	if err := b.compile(s, res, nodes); err != nil && !b.parsed {
		return ha.Policy{}, nil, err
	}
	return b.policy, b.set, nil
}

// compile compiles the rules if something that they rest on changed.
func (b *rulebook) compile(s mirror.Snapshot, res []pveconf.HAResource, nodes map[string]mirror.Record[model.Node]) error {
	written, err := inForce(s, haRulesKey, pveconf.ParseHARules)
	if err != nil {
		return err
	}
	groups, err := inForce(s, haGroupsKey, pveconf.ParseHAGroups)
	if err != nil {
		return err
	}
	src := ruleSource{rules: written.Revision, groups: groups.Revision}
	if groups.Revision != 0 {
		kv, _ := s.Get(haResourcesKey) // says who is in which group
		src.resources = kv.ModRevision
	}
	var members []rules.Node
	for name, n := range nodes {
		members = append(members, rules.Node{Name: name, Rack: n.Value.Rack, Site: n.Value.Site})
	}
	slices.SortFunc(members, func(a, b rules.Node) int { return strings.Compare(a.Name, b.Name) })
	src.nodes = fmt.Sprint(members)
	if b.parsed && src == b.last {
		return nil
	}
	all := written.Value
	if len(groups.Value) > 0 {
		all, _ = pveconf.GroupsToRules(groups.Value, all, res)
	}
	b.set = nil // without a rule in effect guests start without the manager's word
	for _, r := range all {
		if !r.Disabled {
			b.set = rules.Compile(all, members)
			break
		}
	}
	b.parsed, b.last = true, src
	return nil
}

// policyIn is what datacenter.cfg says about HA.
func policyIn(s mirror.Snapshot) (ha.Policy, error) {
	p, err := policyOf(s, datacenterKey)
	return p.policy, err
}

// foundPolicy is a policy, and whether there was a file that says so.
type foundPolicy struct {
	policy ha.Policy
	known  bool
}

// policyOf is what the datacenter.cfg under that key says about HA.
func policyOf(s mirror.Snapshot, key string) (foundPolicy, error) {
	d, err := mirror.Decode(s, key, pveconf.ParseDatacenter)
	if err != nil {
		return foundPolicy{}, err
	}
	h, err := d.Value.HA()
	if err != nil {
		return foundPolicy{}, fmt.Errorf("%s: %w", key, err)
	}
	p := ha.Policy{
		Shutdown: ha.ShutdownPolicy(h.ShutdownPolicy), Tolerate: h.Tolerate, WarnOnly: h.TolerateWarn,
		RebalanceOnStart: h.CRS.RebalanceOnStart, Rebalance: h.CRS.AutoRebalance, Balance: place.DefaultBalanceParams(),
	}
	p.Balance.Threshold, p.Balance.Margin, p.Balance.Hold = h.CRS.Threshold, h.CRS.Margin, h.CRS.Hold()
	switch h.CRS.Mode {
	case "static":
		p.Placing = place.Static
	case "dynamic":
		p.Placing = place.Dynamic
	}
	if h.CRS.Method == "topsis" {
		p.Balance.Method = place.TOPSIS
	}
	return foundPolicy{p, d.Revision != 0}, nil
}
