package agent

import (
	"errors"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	corefence "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
	"sauh.dev/sauh/internal/qemu"
)

// clusterRecords is what both HA views read of the store.
type clusterRecords struct {
	storages  []pveconf.Storage
	states    map[model.VMID]pveconf.HAState
	config    map[model.VMID]ha.Resource
	protected map[model.VMID]ha.Protected
	intents   map[model.VMID]ha.Intent
	statuses  map[model.VMID]ha.StatusRecord
	commands  map[model.VMID]ha.CommandRecord
	policy    ha.Policy
	rules     *rules.Set
	mode      ha.Mode
	live      map[string]mirror.Record[model.Live]
	nodes     map[string]mirror.Record[model.Node]
	requests  map[string]mirror.Record[ha.NodeRequest]
	modes     map[string]mirror.Record[ha.NodeMode]
	health    map[string]mirror.Record[ha.NodeHealth]
	unix      int64
}

// readCluster reads them; with an error nothing may be decided: without one of these records guests would look unprotected,
// tied to their node, not under way, or armed where a person has disarmed them.
func readCluster(s mirror.Snapshot, book *rulebook) (clusterRecords, error) {
	storages, err1 := inForce(s, storageCfgKey, pveconf.ParseStorages)
	resources, err2 := inForce(s, haResourcesKey, pveconf.ParseHAResources)
	c := clusterRecords{
		storages: storages.Value, states: statesOf(resources.Value), config: configOf(resources.Value),
		statuses: statusesIn(s), commands: commandsIn(s), unix: time.Now().Unix(),
	}
	var err3, err4, err5, err6, err7, err8, err9 error
	c.protected, err3 = protectedIn(s)
	c.intents, err4 = intentsIn(s)
	c.live, err5 = mirror.List[model.Live](s, model.LivePrefix)
	c.nodes, err6 = mirror.List[model.Node](s, model.NodePrefix)
	c.requests, err7 = mirror.List[ha.NodeRequest](s, model.HARequestPrefix)
	c.modes, err8 = mirror.List[ha.NodeMode](s, model.HANodePrefix)
	mode, err9 := mirror.Get[ha.Mode](s, model.HAModeKey)
	c.mode = mode.Value
	c.health, _ = mirror.List[ha.NodeHealth](s, model.HAHealthPrefix) // what cannot be read has lost nothing
	var err10 error
	c.policy, c.rules, err10 = book.read(s, resources.Value, c.nodes)
	return c, errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10)
}

// configOf is what ha/resources.cfg says of each resource beyond its requested state.
func configOf(all []pveconf.HAResource) map[model.VMID]ha.Resource {
	out := map[model.VMID]ha.Resource{}
	for _, r := range all {
		if r.Unsupported != "" || r.State == pveconf.HAIgnored {
			continue
		}
		c := ha.Resource{
			MaxRestart: r.MaxRestart, MaxRelocate: r.MaxRelocate, NoFailback: !r.Failback, NoRebalance: !r.AutoRebalance, Order: r.Order,
		}
		for _, a := range r.After {
			c.After = append(c.After, ha.Dependency{VMID: a.VMID, Answers: a.Answers, Delay: a.Delay})
		}
		for _, w := range r.ResetOn {
			c.ResetOn = append(c.ResetOn, ha.Sickness(w))
		}
		out[r.VMID] = c
	}
	return out
}

// sharedOn lists the storages on which node finds other nodes' volumes.
func sharedOn(all []pveconf.Storage, node string) []string {
	var out []string
	for _, s := range all {
		if s.Shared && !s.Disable && s.Unsupported == "" && s.OnNode(node) {
			out = append(out, s.ID)
		}
	}
	return out
}

// haGuests lists the guests' files as core/ha sees them; node "" means all.
func haGuests(s mirror.Snapshot, c clusterRecords, node string) []ha.Guest {
	noLive := map[string]string{}
	for name, n := range c.nodes {
		if n.Value.Accel == "" || n.Value.QEMU == "" {
			continue
		}
		if err := qemu.SupportsMigration(n.Value.Accel, n.Value.QEMU); err != nil {
			noLive[name] = err.Error()
		}
	}
	var out []ha.Guest
	for _, f := range guestFilesIn(s) {
		if node != "" && f.node != node {
			continue
		}
		names, local := volumesOf(f.conf.Disks(), c.storages)
		onRBD := corefence.AllOn(storagesOnRBD(c.storages), disksToFence(f.conf, c.storages))
		out = append(out, ha.Guest{
			VMID: f.id, Node: f.node, Revision: f.revision, MemoryMiB: f.conf.MemoryMiB(), CPUs: f.conf.Cores() * f.conf.Sockets(),
			Storages: names, Local: local, Lock: f.conf.Lock(), RBD: onRBD, NoLive: noLive[f.node],
			Idle: f.conf.Template(),
		})
	}
	return out
}

// storagesOnRBD names the storages that are RBD.
func storagesOnRBD(storages []pveconf.Storage) []string {
	var out []string
	for _, s := range storages {
		if s.Type == storageRBD {
			out = append(out, s.ID)
		}
	}
	return out
}

// storageRBD is the type of Ceph's block devices in storage.cfg.
const storageRBD = "rbd"

// disksToFence are a guest's disks as fencing by their storage knows them.
func disksToFence(conf *pveconf.Guest, storages []pveconf.Storage) []corefence.Disk {
	var out []corefence.Disk
	for _, d := range conf.Disks() {
		name, image, _ := strings.Cut(d.Volume, ":")
		disk := corefence.Disk{Storage: name, Writable: !d.ReadOnly && !d.CDROM}
		if i := slices.IndexFunc(storages, func(s pveconf.Storage) bool { return s.ID == name && s.Type == storageRBD }); i >= 0 {
			disk.Image = rbdImage(storages[i].Section, image)
		}
		out = append(out, disk)
	}
	return out
}

// rbdImage is the name by which the program rbd knows an image: pool/name, or pool/namespace/name.
func rbdImage(s pveconf.Section, image string) string {
	parts := []string{"rbd", image} // the pool where the line names none, as in Proxmox VE
	if pool, ok := s.Get("pool"); ok {
		parts[0] = pool
	}
	if namespace, ok := s.Get("namespace"); ok {
		parts = slices.Insert(parts, 1, namespace)
	}
	return strings.Join(parts, "/")
}

// byVMID lists the JSON records under prefix by guest. An error names the records that cannot be read.
func byVMID[T, U any](s mirror.Snapshot, prefix string, f func(mirror.Record[T]) U) (map[model.VMID]U, error) {
	out := map[model.VMID]U{}
	all, err := mirror.List[T](s, prefix)
	for key, rec := range all {
		if id, perr := model.ParseVMID(key); perr == nil {
			out[id] = f(rec)
		}
	}
	return out, err
}

func protectedIn(s mirror.Snapshot) (map[model.VMID]ha.Protected, error) {
	return byVMID(s, model.ProtectedPrefix, func(r mirror.Record[model.Protected]) ha.Protected {
		return ha.Protected{Protected: r.Value, Revision: r.Revision}
	})
}

func intentsIn(s mirror.Snapshot) (map[model.VMID]ha.Intent, error) {
	return byVMID(s, model.IntentPrefix, func(r mirror.Record[model.Intent]) ha.Intent {
		return ha.Intent{Intent: r.Value, Revision: r.Revision}
	})
}

// statusesIn lists what HA last said. Nothing is decided by it alone, so one that cannot be read is an empty one: it is written over.
func statusesIn(s mirror.Snapshot) map[model.VMID]ha.StatusRecord {
	out := map[model.VMID]ha.StatusRecord{}
	prefix := model.HAStatusPrefix + "vm:"
	for kv := range s.All(prefix) {
		r, _ := mirror.Get[ha.Status](s, kv.Key) // what cannot be read is in the log
		if id, err := model.ParseVMID(strings.TrimPrefix(kv.Key, prefix)); err == nil {
			out[id] = ha.StatusRecord{Status: r.Value, Revision: r.Revision}
		}
	}
	return out
}

// commandsIn lists what persons want done once. One that cannot be read is one of no known kind, which is refused and deleted.
func commandsIn(s mirror.Snapshot) map[model.VMID]ha.CommandRecord {
	out := map[model.VMID]ha.CommandRecord{}
	prefix := model.HACommandPrefix + "vm:"
	for kv := range s.All(prefix) {
		r, _ := mirror.Get[ha.Command](s, kv.Key)
		if id, err := model.ParseVMID(strings.TrimPrefix(kv.Key, prefix)); err == nil {
			out[id] = ha.CommandRecord{Command: r.Value, Revision: r.Revision}
		}
	}
	return out
}
