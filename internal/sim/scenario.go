package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// Scenario is one test of the reference's suite: what goes in, and what must come out.
type Scenario struct {
	Name   string `json:"name"`
	Inputs struct {
		Commands [][]string                 `json:"cmdlist"`
		Nodes    map[string]scenarioNode    `json:"hardware_status"`
		Services map[string]scenarioService `json:"service_config"`
		Rules    []map[string]any           `json:"rules_config,omitempty"`
		Groups   []map[string]any           `json:"groups,omitempty"`
		Center   map[string]map[string]any  `json:"datacenter.cfg,omitempty"`
		Static   map[string]scenarioLoad    `json:"static_service_stats,omitempty"`
		Dynamic  map[string]scenarioLoad    `json:"dynamic_service_stats,omitempty"`
		Manager  scenarioStatus             `json:"manager_status"`
	} `json:"inputs"`
	Expect struct {
		Class     string         `json:"class"`
		MaxMoves  map[string]int `json:"max_moves"`
		Dead      []string       `json:"must_be_dead_before_recovery"`
		NotFenced []string       `json:"must_not_be_fenced"`
		DoubleRun bool           `json:"reference_artefact_double_run"`
		Timing    [][]any        `json:"timing_sensitive_commands"`
	} `json:"expect"`
	Outcome struct {
		Commands [][2]any                   `json:"commands"`
		End      float64                    `json:"end_time"`
		Final    map[string]scenarioFinal   `json:"final"`
		Services map[string]scenarioHistory `json:"services"`
	} `json:"outcome"`
}

type scenarioNode struct {
	CPUs   float64 `json:"maxcpu"`
	Memory float64 `json:"maxmem"` // bytes
}

type scenarioService struct {
	Node       string `json:"node"`
	State      string `json:"state"`
	Group      string `json:"group"`
	Failback   any    `json:"failback"`
	MaxRestart any    `json:"max_restart"`
	MaxMove    any    `json:"max_relocate"`
}

type scenarioLoad struct {
	MaxCPU float64 `json:"maxcpu"`
	MaxMem float64 `json:"maxmem"`
	CPU    float64 `json:"cpu"`
	Mem    float64 `json:"mem"`
}

type scenarioStatus struct {
	Nodes    map[string]string `json:"node_status"`
	Services map[string]struct {
		Node, State, Target string
	} `json:"service_status"`
}

type scenarioFinal struct {
	State   string `json:"ha_state"`
	Node    string `json:"node"`
	Running bool   `json:"running"`
}

type scenarioHistory struct {
	Outages []scenarioOutage `json:"outages"`
	Starts  [][]any          `json:"starts"` // second, node
	Stops   [][]any          `json:"stops"`  // second, node, cause
}

// down is how long the service stood still between a stop and the next start, in seconds, and when it last started.
func (h scenarioHistory) down() (sum, last float64) {
	for _, stop := range h.Stops {
		from, _ := stop[0].(float64)
		for _, start := range h.Starts {
			if to, _ := start[0].(float64); to >= from {
				sum += to - from
				break
			}
		}
	}
	for _, start := range h.Starts {
		last, _ = start[0].(float64)
	}
	return sum, last
}

type scenarioOutage struct {
	Cause   string  `json:"cause"`
	Seconds float64 `json:"seconds"`
}

// ReadScenarios reads a file of scenarios: {"scenarios": […]}, or the list alone. One that has nothing to check, or a key that nobody reads, is refused.
func ReadScenarios(r io.Reader) ([]Scenario, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var file struct {
		Scenarios []json.RawMessage `json:"scenarios"`
	}
	if err := json.Unmarshal(text, &file); err == nil {
		return parseScenarios(file.Scenarios)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("parse scenarios: %w", err)
	}
	return parseScenarios(list)
}

// scenarioRun is a scenario being run.
type scenarioRun struct {
	*Scenario
	cut      map[string]bool
	commands []scheduled
}

type scheduled struct {
	at      time.Duration
	command string
}

// outage is a time that a guest did not run, between two that it did.
type outage struct{ from, to time.Duration }

// The reference's defaults.
const (
	scenarioCPUs   = 24
	scenarioMemory = 128 << 10 // MiB
	guestMemory    = 512       // MiB
)

// newScenario makes the world of a scenario.
func newScenario(sc *Scenario, trace io.Writer) (*sim, error) {
	s := &sim{out: trace, byName: map[string]*node{}, scenario: &scenarioRun{Scenario: sc, cut: map[string]bool{}}}
	s.rng = newRNG(1)
	s.params, s.haParams = lease.DefaultParams(), ha.DefaultParams()
	s.haParams.TakeAfter = s.params.TakeAfter()
	s.result = Result{Injected: map[Kind]int{}}
	for _, name := range slices.Sorted(maps.Keys(sc.Inputs.Nodes)) {
		hw := sc.Inputs.Nodes[name]
		spec := nodeSpec{memoryMiB: scenarioMemory, cpus: scenarioCPUs, watchdog: true, storages: []string{"shared"}}
		if hw.Memory > 0 {
			spec.memoryMiB = int64(hw.Memory) >> 20
		}
		if hw.CPUs > 0 {
			spec.cpus = int(hw.CPUs)
		}
		s.addNode(name, spec, 0).bmc.power = false
	}
	s.linkUp()
	s.addStorage(&storage{s: s, name: "shared"})
	s.store = &store{s: s, data: map[string]record{}}
	s.check = newChecks(s)
	for _, n := range s.nodes {
		s.store.seed(model.NodePrefix+n.name, model.Node{Name: n.name, ID: n.i + 1, MemoryMiB: n.spec.memoryMiB, Level: n.level()})
	}
	if err := s.seedScenario(sc); err != nil {
		return nil, fmt.Errorf("scenario %s: %w", sc.Name, err)
	}
	s.scheduleScenario(sc)
	return s, nil
}

// seedScenario writes the configuration.
func (s *sim) seedScenario(sc *Scenario) error {
	var text strings.Builder
	for _, sid := range slices.Sorted(maps.Keys(sc.Inputs.Services)) {
		svc := sc.Inputs.Services[sid]
		kind, id, err := splitSID(sid)
		if err != nil {
			return err
		}
		conf := &guestConf{memoryMiB: guestMemory, cpus: 1, storage: "shared"}
		st := sc.Inputs.Static[sid]
		st.apply(conf)
		g := s.addGuest(kind, id, conf)
		g.load = ha.Load{CPU: sc.Inputs.Dynamic[sid].CPU, MemoryMiB: int64(sc.Inputs.Dynamic[sid].Mem) >> 20}
		if kind == "fa" {
			g.encodeFailures(id.String())
		}
		s.store.seed(model.GuestConfigKey(svc.Node, id), conf)
		writeSection(&text, sid, svc)
	}
	all, err := pveconf.ParseHAResources([]byte(text.String()))
	if err != nil {
		return err
	}
	ruleList, err := pveconf.ParseHARules([]byte(sections(sc.Inputs.Rules)))
	if err != nil {
		return err
	}
	groups, err := pveconf.ParseHAGroups([]byte(sections(sc.Inputs.Groups)))
	if err != nil {
		return err
	}
	ruleList, all = pveconf.GroupsToRules(groups, ruleList, all)
	s.store.seed(haResourcesKey, resourcesOf(all))
	s.store.seed(haRulesKey, compileRules(ruleList, s.nodes))
	center, err := readDatacenter(centerText(sc.Inputs.Center))
	if err != nil {
		return err
	}
	center.policy.Overcommit = true
	s.store.seed(datacenterKey, center)
	s.seedStatus(sc)
	return nil
}

// seedStatus writes what an earlier manager left.
func (s *sim) seedStatus(sc *Scenario) {
	for _, sid := range slices.Sorted(maps.Keys(sc.Inputs.Manager.Services)) {
		st := sc.Inputs.Manager.Services[sid]
		s.store.seed(model.HAStatusPrefix+sid, ha.Status{State: ha.StatusState(st.State), Node: st.Node, Target: st.Target})
	}
	for _, name := range slices.Sorted(maps.Keys(sc.Inputs.Manager.Nodes)) {
		if sc.Inputs.Manager.Nodes[name] == "fence" {
			s.store.seed(model.LivePrefix+name, model.Live{BootID: "earlier", Epoch: 2, Fenced: true, By: "node1"})
		}
	}
}

func splitSID(sid string) (kind string, id model.VMID, err error) {
	kind, num, _ := strings.Cut(sid, ":")
	id, err = model.ParseVMID(num)
	return kind, id, err
}

// writeSection writes a resource as ha/resources.cfg has it.
func writeSection(b *strings.Builder, sid string, svc scenarioService) {
	kind, id, _ := strings.Cut(sid, ":")
	fmt.Fprintf(b, "%s: %s\n", kind, id)
	state := svc.State
	switch state {
	case "enabled":
		state = "started"
	case "":
		state = "disabled"
	}
	fmt.Fprintf(b, "\tstate %s\n", state)
	for _, kv := range []struct {
		key string
		val any
	}{{"group", svc.Group}, {"failback", svc.Failback}, {"max_restart", svc.MaxRestart}, {"max_relocate", svc.MaxMove}} {
		if kv.val != nil && kv.val != "" {
			fmt.Fprintf(b, "\t%s %s\n", kv.key, word(kv.val))
		}
	}
	b.WriteString("\n")
}

// word is a JSON value as it stands in a configuration file.
func word(v any) string {
	switch v := v.(type) {
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case bool:
		if v {
			return "1"
		}
		return "0"
	}
	return fmt.Sprint(v)
}

// sections writes rules or groups as their files have them.
func sections(list []map[string]any) string {
	var b strings.Builder
	for _, sec := range list {
		fmt.Fprintf(&b, "%s: %s\n", word(sec["type"]), word(sec["id"]))
		for _, key := range slices.Sorted(maps.Keys(sec)) {
			if key != "type" && key != "id" {
				fmt.Fprintf(&b, "\t%s %s\n", key, word(sec[key]))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func centerText(center map[string]map[string]any) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(center)) {
		var props []string
		for _, key := range slices.Sorted(maps.Keys(center[name])) {
			props = append(props, key+"="+word(center[name][key]))
		}
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(props, ","))
	}
	return b.String()
}

// resourcesOf is ha/resources.cfg as the core wants it.
func resourcesOf(all []pveconf.HAResource) *resources {
	r := &resources{states: map[model.VMID]pveconf.HAState{}, config: map[model.VMID]ha.Resource{}}
	for _, res := range all {
		r.states[res.VMID] = res.State
		c := ha.Resource{MaxRestart: res.MaxRestart, MaxRelocate: res.MaxRelocate, NoFailback: !res.Failback}
		if res.Type != "vm" {
			c.Kind = res.Type
		}
		r.config[res.VMID] = c
	}
	return r
}

// apply sets the configured size of a guest.
func (l scenarioLoad) apply(c *guestConf) {
	if l.MaxCPU > 0 {
		c.cpus = max(1, int(l.MaxCPU))
	}
	if l.MaxMem > 0 {
		c.memoryMiB = int64(l.MaxMem) >> 20
	}
}

// encodeFailures reads what is to go wrong from the number of a service of type fa: index, failing starts, failing moves, cannot be
// stopped, exists, and the only node on which starts fail: that is what the outcomes of the reference show.
func (g *guest) encodeFailures(digits string) {
	d := make([]int, 6)
	for i := range min(len(digits), len(d)) {
		d[i] = int(digits[i] - '0')
	}
	g.failStarts, g.failMoves, g.wontStop = d[1], d[2], d[3] != 0
	if d[5] != 0 {
		g.failsOn = "node" + strconv.Itoa(d[5])
	}
}

// scheduleScenario says when each command runs: as the outcome has it, else the first list at 20 s and each further one 100 s later.
func (s *sim) scheduleScenario(sc *Scenario) {
	run := s.scenario
	last := 20 * time.Second
	if len(sc.Outcome.Commands) > 0 {
		for _, c := range sc.Outcome.Commands {
			sec, _ := c[0].(float64)
			command, _ := c[1].(string)
			last = time.Duration(sec * float64(time.Second))
			run.commands = append(run.commands, scheduled{last, command})
		}
	} else {
		last = run.computeSchedule()
	}
	s.end = last + 500*time.Second
	if sc.Outcome.End > 0 {
		s.end = time.Duration(sc.Outcome.End * float64(time.Second))
	}
}

// computeSchedule follows the reference's clock, which looks every 20 s.
func (run *scenarioRun) computeSchedule() (last time.Duration) {
	at := 20 * time.Second
	for _, list := range run.Inputs.Commands {
		last = at
		wait := 100 * time.Second
		for _, c := range list {
			if sec, ok := strings.CutPrefix(c, "delay "); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(sec))
				wait += max(0, time.Duration(n)*time.Second-20*time.Second)
				continue
			}
			run.commands = append(run.commands, scheduled{at, c})
		}
		at += wait
	}
	return last
}
