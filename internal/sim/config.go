package sim

import (
	"strings"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// datacenter is datacenter.cfg, read.
type datacenter struct{ policy ha.Policy }

// readDatacenter turns the file into the manager's policy.
func readDatacenter(text string) (*datacenter, error) {
	file, err := pveconf.ParseDatacenter([]byte(text))
	if err != nil {
		return nil, err
	}
	conf, err := file.HA()
	if err != nil {
		return nil, err
	}
	p := ha.Policy{
		Shutdown: ha.ShutdownPolicy(conf.ShutdownPolicy), RebalanceOnStart: conf.CRS.RebalanceOnStart, Rebalance: conf.CRS.AutoRebalance,
		Balance: place.DefaultBalanceParams(),
	}
	switch conf.CRS.Mode {
	case "static":
		p.Placing = place.Static
	case "dynamic":
		p.Placing = place.Dynamic
	}
	p.Balance.Threshold, p.Balance.Margin, p.Balance.Hold = conf.CRS.Threshold, conf.CRS.Margin, conf.CRS.Hold()
	if conf.CRS.Method == "topsis" {
		p.Balance.Method = place.TOPSIS
	}
	return &datacenter{p}, nil
}

// ruleSet is ha/rules.cfg, compiled for the cluster's nodes.
type ruleSet struct {
	set  *rules.Set
	name string // its first line
}

func readRules(text string, nodes []*node) (*ruleSet, error) {
	all, err := pveconf.ParseHARules([]byte(text))
	if err != nil {
		return nil, err
	}
	set := compileRules(all, nodes)
	set.name, _, _ = strings.Cut(text, "\n")
	return set, nil
}

func compileRules(all []pveconf.HARule, nodes []*node) *ruleSet {
	if len(all) == 0 {
		return &ruleSet{}
	}
	var names []rules.Node
	for _, n := range nodes {
		names = append(names, rules.Node{Name: n.name})
	}
	return &ruleSet{set: rules.Compile(all, names)}
}

// loads is the guests with what they use at the moment.
func (a *agent) loads(guests []ha.Guest) []ha.Guest {
	if a.s.scenario == nil {
		return guests
	}
	out := make([]ha.Guest, len(guests))
	for i, g := range guests {
		g.Load = a.s.guest(g.VMID).load
		out[i] = g
	}
	return out
}

// nodeLoad is what a node's guests use at the moment.
func (s *sim) nodeLoad(n *node) ha.Load {
	var l ha.Load
	for _, q := range n.qemus {
		l.CPU += q.g.load.CPU
		l.MemoryMiB += q.g.load.MemoryMiB
	}
	return l
}

// gaveUp says that HA has given the guest up for a reason that is the guest's own: it was told not to start.
func (s *sim) gaveUp(g *guest) bool {
	st, ok := s.store.data[model.HAStatusPrefix+g.sid].val.(ha.Status)
	return ok && st.State == ha.StatusError && strings.Contains(st.Reason, errFailed.Error())
}
