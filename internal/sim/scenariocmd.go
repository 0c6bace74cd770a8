package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// command carries out one command of a scenario. What is only the reference's plumbing (skip-round, versions) does nothing.
func (s *sim) command(text string) error {
	w := strings.Fields(text)
	s.trace(nil, "COMMAND %s", text)
	if len(w) < 2 {
		return fmt.Errorf("command %q is not known", text)
	}
	switch w[0] {
	case "delay", "skip-round", "pve-manager-version":
		return nil
	case "service":
		return s.serviceCommand(w)
	}
	n := s.nodeNamed(w[1])
	if n == nil {
		return fmt.Errorf("command %q: there is no node %s", text, w[1])
	}
	switch w[0] {
	case "power":
		s.power(n, len(w) > 2 && w[2] == "on")
	case "network":
		s.network(n, len(w) > 2 && w[2] == "on")
	case "reboot":
		n.endInOrder(ha.EndsReboot)
	case "shutdown":
		n.endInOrder(ha.EndsShutdown)
	case "restart-lrm":
		n.killAgent()
		s.after(2*time.Second, &n.machine, n.startAgent)
	case "crm":
		return s.managerCommand(n, w[2:])
	case "cfs":
		n.cfsFails = len(w) > 3 && w[2] == "rw" && w[3] == "fail"
		if a := n.agent; a != nil && !n.cfsFails {
			a.ha.changed(a)
		}
	default:
		return fmt.Errorf("command %q is not known", text)
	}
	return nil
}

// power switches a node on or off; its network comes with it.
func (s *sim) power(n *node, on bool) {
	if !on {
		n.powerOff("power off")
		return
	}
	s.network(n, true)
	n.bmc.on(s.now)
	n.boot()
}

// network plugs the node's network in or out.
func (s *sim) network(n *node, on bool) {
	for _, o := range s.nodes {
		if o == n {
			continue
		}
		for _, l := range []*link{s.link(n, o), s.link(o, n)} {
			bit := 1 << n.i
			if on {
				l.cut &^= bit
			} else {
				l.cut |= bit
			}
		}
	}
	s.changed()
}

// managerCommand is what the reference asks of its manager.
func (s *sim) managerCommand(n *node, w []string) error {
	switch strings.Join(w, " ") {
	case "stop":
		n.noManager = true
	case "start":
		n.noManager = false
		if a := n.agent; a != nil {
			a.ha.changed(a)
		}
	case "enable-node-maintenance":
		s.write(op{model.HARequestPrefix + n.name, ha.NodeRequest{Maintenance: true}})
	case "disable-node-maintenance":
		s.write(op{model.HARequestPrefix + n.name, ha.NodeRequest{}})
	case "disarm-ha freeze":
		s.write(op{model.HAModeKey, ha.Mode{Disarm: ha.DisarmFreeze}})
	case "disarm-ha ignore":
		s.write(op{model.HAModeKey, ha.Mode{Disarm: ha.DisarmIgnore}})
	case "arm-ha":
		s.write(op{model.HAModeKey, ha.Mode{}})
	default:
		return fmt.Errorf("command \"crm %s %s\" is not known", n.name, strings.Join(w, " "))
	}
	return nil
}

// write is what a person writes through any node; it waits for a leader.
func (s *sim) write(ops ...op) { s.edit(func() []op { return ops }) }

// edit writes what make returns at that moment.
func (s *sim) edit(mk func() []op) {
	l := s.store.leader
	if l == nil || l.agent == nil || !s.store.majority(l) {
		s.after(200*time.Millisecond, nil, func() { s.edit(mk) })
		return
	}
	if ops := mk(); len(ops) > 0 {
		s.store.apply(&request{a: l.agent, ops: ops, sent: s.now})
	}
}

// present is ha/resources.cfg as the store has it.
func (s *sim) present() *resources {
	res, _ := s.store.data[haResourcesKey].val.(*resources)
	return res
}

// setState writes a requested state, and more with it.
func (s *sim) setState(g *guest, state pveconf.HAState, more ...op) {
	s.edit(func() []op {
		res := s.present()
		conf, ok := res.config[g.id]
		if !ok {
			conf = ha.Resource{MaxRestart: 1, MaxRelocate: 1, Kind: g.kind()}
		}
		return append([]op{{haResourcesKey, res.with(g.id, state, conf)}}, more...)
	})
}

// serviceCommand is a command for one service: service SID VERB …
func (s *sim) serviceCommand(w []string) error {
	text := strings.Join(w, " ")
	if len(w) < 3 {
		return fmt.Errorf("command %q is not known", text)
	}
	kind, id, err := splitSID(w[1])
	if err != nil {
		return err
	}
	g, arg := s.guest(id), ""
	if len(w) > 3 {
		arg = w[3]
	}
	if w[2] == "add" {
		return s.addService(kind, id, w[3:])
	}
	if g == nil {
		return fmt.Errorf("command %q: there is no such service", text)
	}
	key := model.HACommandPrefix + g.sid
	switch w[2] {
	case "started", "enabled":
		s.setState(g, pveconf.HAStarted)
	case "stopped", "disabled", "ignored":
		s.setState(g, pveconf.HAState(w[2]))
	case "migrate":
		s.write(op{key, ha.Command{Kind: ha.CommandMigrate, Target: arg}})
	case "relocate":
		s.write(op{key, ha.Command{Kind: ha.CommandRelocate, Target: arg}})
	case "stop":
		sec, _ := strconv.Atoi(arg)
		s.setState(g, pveconf.HAStopped, op{key, ha.Command{Kind: ha.CommandStop, TimeoutSeconds: sec}})
	case "delete":
		s.edit(func() []op { return []op{{haResourcesKey, s.present().with(g.id, "", ha.Resource{})}} })
	case "lock", "unlock":
		s.setLock(g, w[2] == "lock", arg)
	case "manual-migrate":
		s.manualMove(g, arg)
	case "set-static-stats":
		s.setStatic(g, w[3:])
	case "set-dynamic-stats":
		setDynamic(g, w[3:])
		s.lookAnew()
	default:
		return fmt.Errorf("command %q is not known", text)
	}
	return nil
}

// lookAnew is the summary that each node gets every few seconds.
func (s *sim) lookAnew() {
	for _, n := range s.nodes {
		if a := n.agent; a != nil {
			s.after(time.Second, &n.agentProc, func() { a.ha.changed(a) })
		}
	}
}

// addService makes a service: NODE [STATE] [running].
func (s *sim) addService(kind string, id model.VMID, w []string) error {
	if len(w) == 0 {
		return fmt.Errorf("service %s:%s add: a node is missing", kind, id)
	}
	state := pveconf.HAStarted
	if len(w) > 1 && w[1] != "enabled" {
		state = pveconf.HAState(w[1])
	}
	g := s.guest(id)
	if g == nil {
		g = s.addGuest(kind, id, &guestConf{memoryMiB: guestMemory, cpus: 1, storage: "shared"})
		if kind == "fa" {
			g.encodeFailures(id.String())
		}
	}
	s.edit(func() []op {
		res := s.present().with(g.id, state, ha.Resource{MaxRestart: 1, MaxRelocate: 1, Kind: g.kind()})
		ops := []op{{haResourcesKey, res}}
		if s.owner(g) == nil {
			ops = append(ops, op{model.GuestConfigKey(w[0], id), g.conf})
		}
		return ops
	})
	return nil
}

// setLock writes the configuration's lock.
func (s *sim) setLock(g *guest, lock bool, name string) {
	s.edit(func() []op {
		n := s.owner(g)
		if n == nil {
			return nil
		}
		conf := *s.store.data[model.GuestConfigKey(n.name, g.id)].val.(*guestConf)
		conf.lock = ""
		if lock {
			conf.lock = "backup"
			if name != "" {
				conf.lock = name
			}
		}
		return []op{{model.GuestConfigKey(n.name, g.id), &conf}}
	})
}

// manualMove is a person's own migration, around HA where HA leaves the guest alone.
func (s *sim) manualMove(g *guest, target string) {
	state := s.present().states[g.id]
	mode, _ := s.store.data[model.HAModeKey].val.(ha.Mode)
	n := s.owner(g)
	if state != "" && state != pveconf.HAIgnored && mode.Disarm != ha.DisarmIgnore {
		s.write(op{model.HACommandPrefix + g.sid, ha.Command{Kind: ha.CommandMigrate, Target: target}})
		return
	}
	if n == nil || n.agent == nil || n.name == target {
		return
	}
	a := n.agent
	if a.proc(g.id) != nil {
		if a.lock(g.id, "migration") {
			a.migrate(g.id, target, func(error) { a.unlock(g.id) })
		}
		return
	}
	s.edit(func() []op {
		from := model.GuestConfigKey(n.name, g.id)
		ops := []op{{from, nil}, {model.GuestConfigKey(target, g.id), s.store.data[from].val}}
		if key := model.ProtectedPrefix + g.id.String(); hasKey(s.store.data, key) {
			ops = append(ops, op{key, model.Protected{Node: target}})
		}
		return ops
	})
}

// stats reads "cpu 1.5 mem 2048".
func stats(w []string) map[string]float64 {
	out := map[string]float64{}
	for i := 0; i+1 < len(w); i += 2 {
		out[w[i]], _ = strconv.ParseFloat(w[i+1], 64)
	}
	return out
}

func (s *sim) setStatic(g *guest, w []string) {
	s.edit(func() []op {
		n := s.owner(g)
		if n == nil {
			return nil
		}
		conf := *s.store.data[model.GuestConfigKey(n.name, g.id)].val.(*guestConf)
		for key, v := range stats(w) {
			if key == "maxcpu" {
				conf.cpus = max(1, int(v))
			} else {
				conf.memoryMiB = int64(v)
			}
		}
		return []op{{model.GuestConfigKey(n.name, g.id), &conf}}
	})
}

func setDynamic(g *guest, w []string) {
	for key, v := range stats(w) {
		if key == "cpu" {
			g.load.CPU = v
		} else {
			g.load.MemoryMiB = int64(v)
		}
	}
}
