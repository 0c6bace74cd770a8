package agent

import (
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// notFrozen refuses what a person asks of a guest of node that is an HA resource while HA is disarmed with freeze: then everything stays as it is.
func (h *resources) notFrozen(node string, id model.VMID) error {
	s := h.mirror.Snapshot()
	all, _ := inForce(s, haResourcesKey, pveconf.ParseHAResources) // what nobody knows holds nothing back
	if _, managed := statesOf(all.Value)[id]; !managed {
		return nil
	}
	mode, _ := mirror.Get[ha.Mode](s, model.HAModeKey)
	request, _ := mirror.Get[ha.NodeRequest](s, model.HARequestPrefix+node)
	now := time.Now().Unix()
	what, since, until, of := mode.Value.At(now), mode.Value.Since, mode.Value.Until, ""
	if what == ha.Armed { // as the manager and the worker see it, the cluster's comes first
		what, since, until, of = request.Value.DisarmAt(now), request.Value.Since, request.Value.Until, " --node "+node
	}
	if what != ha.DisarmFreeze {
		return nil
	}
	when := onClock(" since ", since) + onClock(" until ", until)
	return model.Errorf(model.ErrBusy,
		"%s stays as it is: HA is disarmed (freeze)%s; `sauh ha arm%s` ends that, and with `sauh ha disarm --mode ignore%s` guests can be started, stopped and moved by hand",
		id.SID(), when, of, of)
}

// onClock is a time for people, after a word; "" for 0.
func onClock(word string, unix int64) string {
	if unix == 0 {
		return ""
	}
	return word + time.Unix(unix, 0).UTC().Format("2006-01-02 15:04:05 UTC")
}
