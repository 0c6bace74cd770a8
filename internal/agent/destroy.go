package agent

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
)

// mayDestroy refuses to destroy a guest that runs, is an HA resource, is protected from it, or has a volume that another guest has, too.
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
	for _, volume := range ownVolumes(id, conf) {
		if user := c.userOf(volume, id); user != "" {
			return o, nil, model.Errorf(model.ErrBusy, "volume %s of guest %s is also %s: detach it there first", volume, id, user)
		}
		if err := c.checkUnused(ctx, volume); errors.Is(err, storage.ErrInUse) {
			return o, nil, err // any other error is the volume's own, and must not keep a guest for ever
		}
	}
	return o, conf, nil
}

func (c *creation) checkUnused(ctx context.Context, volume string) error {
	name, _ := volumeStorage(volume)
	drv, err := c.storages.driver(name)
	if err != nil {
		return err
	}
	checker, ok := drv.(storage.UseChecker)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return checker.CheckUnused(ctx, volume)
}

// userOf says which other guest than id has the volume, by its file or by its process on this node: "virtio0 of guest 101 on n2".
func (c *creation) userOf(volume string, id model.VMID) string {
	if user := c.storages.userOf(volume, id); user != "" {
		return user
	}
	for other, p := range c.procs.list() {
		for _, d := range p.Spec().Disks {
			if other != id && d.Volume == volume {
				return fmt.Sprintf("%s of guest %s, which runs with it on %s", d.ID, other, c.node)
			}
		}
	}
	return ""
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
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			errs = append(errs, fmt.Errorf("guest %s is deleted, and its volume %s is left (%w): delete it with `sauh storage free %s`", id, volume, err, volume))
		}
	}
	c.mentionLeft(ctx, id, t)
	return errors.Join(errs...)
}

// mentionLeft names the volumes made for a guest that its file did not name.
func (c *creation) mentionLeft(ctx context.Context, id model.VMID, t *task.Task) {
	set, err := c.storages.known()
	if err != nil {
		return // nothing is lost by not knowing
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	for _, s := range set.all {
		drv, err := set.driver(s.ID)
		if err != nil {
			continue
		}
		volumes, err := drv.List(ctx)
		if err != nil {
			t.Logf("storage %s was not searched for more volumes of the guest: %v", s.ID, err)
		}
		for _, v := range volumes {
			if v.VMID == id && c.userOf(v.ID, id) == "" {
				t.Logf("WARN: volume %s was made for guest %s and its configuration did not name it, so it stays: delete it with `sauh storage free %s`", v.ID, id, v.ID)
			}
		}
	}
}

// ownVolumes lists the volumes in a configuration, detached ones included, that were made for the guest itself.
func ownVolumes(id model.VMID, conf *pveconf.Guest) []string {
	var own []string
	for _, d := range append(conf.Disks(), unusedDisks(conf)...) {
		volume := d.Volume
		_, isVolume := volumeStorage(volume)
		_, name, _ := strings.Cut(volume, ":")
		if isVolume && strings.HasPrefix(path.Base(name), "vm-"+id.String()+"-") && !slices.Contains(own, volume) {
			own = append(own, volume)
		}
	}
	return own
}

// unusedDisks are the detached volumes of a configuration.
func unusedDisks(conf *pveconf.Guest) []pveconf.Disk {
	var out []pveconf.Disk
	for _, key := range conf.Keys() {
		if family, _, ok := pveconf.SplitIndex(key); ok && family == "unused" {
			volume, _ := conf.Get(key)
			out = append(out, pveconf.Disk{Key: key, Volume: volume})
		}
	}
	return out
}
