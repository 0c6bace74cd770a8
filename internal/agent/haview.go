package agent

import (
	"errors"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// clusterRecords is what both HA views read of the store.
type clusterRecords struct {
	storages  []pveconf.Storage
	states    map[model.VMID]pveconf.HAState
	protected map[model.VMID]ha.Protected
	intents   map[model.VMID]ha.Intent
	statuses  map[model.VMID]ha.StatusRecord
	live      map[string]mirror.Record[model.Live]
}

// readCluster reads them; with an error nothing may be decided: without one of these records guests would look unprotected,
// tied to their node, or not under way.
func readCluster(s mirror.Snapshot) (clusterRecords, error) {
	storages, err1 := mirror.Decode(s, storageCfgKey, pveconf.ParseStorages)
	resources, err2 := mirror.Decode(s, haResourcesKey, pveconf.ParseHAResources)
	c := clusterRecords{storages: storages.Value, states: statesOf(resources.Value)}
	var err3, err4, err5 error
	c.protected, err3 = protectedIn(s)
	c.intents, err4 = intentsIn(s)
	c.statuses = statusesIn(s)
	c.live, err5 = mirror.List[model.Live](s, model.LivePrefix)
	return c, errors.Join(err1, err2, err3, err4, err5)
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
func haGuests(s mirror.Snapshot, storages []pveconf.Storage, node string) []ha.Guest {
	var out []ha.Guest
	for _, f := range guestFilesIn(s) {
		if node != "" && f.node != node {
			continue
		}
		names, local := volumesOf(f.conf.Disks(), storages)
		out = append(out, ha.Guest{
			VMID: f.id, Node: f.node, Revision: f.revision, MemoryMiB: f.conf.MemoryMiB(), Storages: names, Local: local,
		})
	}
	return out
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
