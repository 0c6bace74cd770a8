package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// resources are the HA resources as they are configured.
type resources struct {
	log      *slog.Logger
	st       store.Store
	mirror   *mirror.Mirror
	roster   roster
	files    guestFiles
	storages *storages
	live     observer
	quorate  func() bool
}

// observer knows what was heard of the other nodes.
type observer interface {
	Online(node string) bool
	Verdict(node string) (v lease.Verdict, silence time.Duration)
}

const haResourcesKey = model.ConfigPrefix + "ha/resources.cfg"

// known is ha/resources.cfg as the mirror has it.
func (h *resources) known() ([]pveconf.HAResource, error) {
	r, err := mirror.Decode(h.mirror.Snapshot(), haResourcesKey, pveconf.ParseHAResources)
	return r.Value, err
}

// states maps each guest that is an HA resource to the state asked for; those ignored are none.
func (h *resources) states() map[model.VMID]pveconf.HAState {
	all, _ := h.known() // what cannot be read is in the log, and HA decides nothing by it
	return statesOf(all)
}

func statesOf(all []pveconf.HAResource) map[model.VMID]pveconf.HAState {
	out := map[model.VMID]pveconf.HAState{}
	for _, r := range all {
		if r.Unsupported == "" && r.State != pveconf.HAIgnored {
			out[r.VMID] = r.State
		}
	}
	return out
}

func findResource(all []pveconf.HAResource, id model.VMID) int {
	return slices.IndexFunc(all, func(r pveconf.HAResource) bool { return r.Type == "vm" && r.VMID == id })
}

func (h *resources) edit(ctx context.Context, what string, f func([]pveconf.HAResource) ([]pveconf.HAResource, error)) error {
	return editFile(ctx, h.st, what, haResourcesKey, func(old []byte) ([]byte, error) {
		all, err := pveconf.ParseHAResources(old)
		if err != nil {
			return nil, err
		}
		if all, err = f(all); err != nil {
			return nil, err
		}
		return pveconf.PrintHAResources(all)
	})
}

func noResource(id model.VMID) error {
	return model.Errorf(model.ErrNotFound, "no such resource 'vm:%s'", id)
}
