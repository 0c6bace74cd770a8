package agent

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// mayDestroy refuses to destroy a guest that runs, is an HA resource, or is protected from it.
func (c *creation) mayDestroy(ctx context.Context, id model.VMID) (ownership, *pveconf.Guest, error) {
	if err := c.procs.unadopted(id); err != nil {
		return ownership{}, nil, err
	}
	if c.procs.get(id) != nil {
		return ownership{}, nil, model.Errorf(model.ErrBusy, "VM %s is running - destroy failed: stop it first", id)
	}
	o, err := c.starter.readOwnership(ctx, id, c.node)
	if err != nil {
		return o, nil, err
	}
	if o.state != "" {
		return o, nil, model.Errorf(model.ErrBusy, "guest %s is an HA resource: run `sauh ha remove vm:%s` first", id, id)
	}
	conf, err := pveconf.ParseGuest(o.conf.Value)
	if err != nil {
		return o, nil, err
	}
	if conf.Protection() {
		return o, nil, model.Errorf(model.ErrBusy, "can't remove VM %s - protection mode enabled", id)
	}
	return o, conf, nil
}

// destroy deletes the file first, so that nobody starts the guest any more, then its volumes. The caller holds the guest's lock.
func (c *creation) destroy(ctx context.Context, id model.VMID, t *task.Task) error {
	o, conf, err := c.mayDestroy(ctx, id)
	if err != nil {
		return err
	}
	txn := store.Txn{
		If: []store.Cond{
			{Key: o.conf.Key, Revision: o.conf.ModRevision},
			{Key: model.IntentPrefix + id.String()},
			{Key: model.ProtectedPrefix + id.String(), Revision: o.protected.Revision},
		},
		Then: []store.Op{store.Delete(o.conf.Key)},
	}
	if o.protected.Revision != 0 {
		txn.Then = append(txn.Then, store.Delete(model.ProtectedPrefix+id.String()))
	}
	for _, key := range []string{model.VMIDPrefix + id.String(), model.HAStatusPrefix + id.SID()} {
		if kv, err := c.st.Get(ctx, key, store.Linearizable); err == nil {
			txn.If = append(txn.If, store.Cond{Key: key, Revision: kv.ModRevision})
			txn.Then = append(txn.Then, store.Delete(key))
		}
	}
	if _, err := c.st.Txn(ctx, txn); err != nil {
		return writeError("destroy guest "+id.String(), err)
	}
	var errs []error
	for _, volume := range ownVolumes(id, conf) {
		t.Logf("delete volume %s", volume)
		name, _ := volumeStorage(volume)
		drv, err := c.storages.driver(name)
		if err == nil {
			dctx, cancel := context.WithTimeout(ctx, storageDeadline)
			err = drv.Delete(dctx, volume)
			cancel()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ownVolumes lists the volumes in a configuration, detached ones included, that were made for the guest itself.
func ownVolumes(id model.VMID, conf *pveconf.Guest) []string {
	var all, own []string
	for _, d := range conf.Disks() {
		all = append(all, d.Volume)
	}
	for _, key := range conf.Keys() {
		if family, _, ok := pveconf.SplitIndex(key); ok && family == "unused" {
			v, _ := conf.Get(key)
			all = append(all, v)
		}
	}
	for _, volume := range all {
		_, isVolume := volumeStorage(volume)
		_, name, _ := strings.Cut(volume, ":")
		if isVolume && strings.HasPrefix(path.Base(name), "vm-"+id.String()+"-") && !slices.Contains(own, volume) {
			own = append(own, volume)
		}
	}
	return own
}
