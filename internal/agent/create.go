package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/units"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
)

// creation makes guests and destroys them, with their volumes.
type creation struct {
	node     string
	log      *slog.Logger
	st       store.Store
	host     *hostInfo
	storages *storages
	starter  *starter
	procs    *procs
}

// newGuest is a configuration and the volumes that are to be made for it.
type newGuest struct {
	conf    *pveconf.Guest
	volumes []newVolume
}

type newVolume struct {
	key     string // "virtio0"
	storage string
	file    string // image to copy, "" for an empty volume
	alloc   storage.Allocation
	props   pveconf.Props
}

// planGuest checks the parameters of a new guest and finds out what is to be made.
func (c *creation) planGuest(ctx context.Context, r api.CreateGuestRequest) (*newGuest, error) {
	plan := &newGuest{conf: &pveconf.Guest{}}
	keys := make([]string, 0, len(r.Params))
	for k := range r.Params {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		v := r.Params[k]
		family, _, indexed := pveconf.SplitIndex(k)
		var err error
		switch {
		case indexed && family == "net":
			if v, err = withMAC(k, v); err == nil {
				err = plan.conf.Set(k, v)
			}
		case isDiskKey(k):
			if err = c.planDisk(ctx, plan, r.VMID, k, v); err == nil {
				err = attach(plan.conf, k)
			}
		default:
			err = plan.conf.Set(k, v)
		}
		if err != nil {
			return nil, err
		}
	}
	meta := fmt.Sprintf("creation-qemu=%s,ctime=%d", c.host.qemuVersion(), time.Now().Unix())
	if _, ok := plan.conf.Get("smbios1"); !ok {
		if err := plan.conf.Set("smbios1", "uuid="+newUUID()); err != nil {
			return nil, err
		}
	}
	if err := plan.conf.Set("meta", meta); err != nil {
		return nil, err
	}
	planned := plan.conf.Clone()
	for _, v := range plan.volumes {
		if err := planned.Set(v.key, "none"); err != nil { // any value: it will be there
			return nil, err
		}
	}
	return plan, refuseValues(ctx, planned, r.Params)
}

// maxGiB is where a size in bytes does not fit into 63 bits any more.
const maxGiB = 1 << 33

// planDisk understands <storage>:<GiB>[,format=…][,import-from=FILE] beside the volumes there are.
func (c *creation) planDisk(ctx context.Context, plan *newGuest, id model.VMID, key, value string) error {
	disk, err := pveconf.ParseDisk(key, value)
	if err != nil {
		return err
	}
	name, isVolume := volumeStorage(disk.Volume)
	if !isVolume {
		return plan.conf.Set(key, value)
	}
	drv, err := c.storages.driver(name)
	if err != nil {
		return model.Invalidf(key, "%v", err)
	}
	size := strings.TrimPrefix(disk.Volume, name+":")
	if _, err := units.ParseBytes(size); err == nil && strings.Trim(size, "0123456789.") != "" {
		return model.Invalidf(key, "the size of a new volume is a number of GiB: write %s:4 for 4 GiB, not %s", name, disk.Volume)
	}
	gib, err := strconv.ParseFloat(size, 64)
	if err != nil { // the name of a volume
		ctx, cancel := context.WithTimeout(ctx, storageDeadline)
		defer cancel()
		if _, _, err := drv.File(ctx, disk.Volume); err != nil {
			return model.Invalidf(key, "%v", err)
		}
		return plan.conf.Set(key, value)
	}
	if gib < 0 || gib >= maxGiB || math.IsNaN(gib) || gib == 0 && disk.ImportFrom == "" {
		return model.Invalidf(key, "a new volume needs a size: write %s:4 for 4 GiB, or %s:0,import-from=FILE", name, name)
	}
	v := newVolume{key: key, storage: name, file: disk.ImportFrom, props: disk.Props}
	v.alloc = storage.Allocation{VMID: id, Format: storage.Format(disk.Format), Size: int64(gib * (1 << 30))}
	plan.volumes = append(plan.volumes, v)
	return nil
}

func (c *creation) create(ctx context.Context, id model.VMID, plan *newGuest, t *task.Task) (err error) {
	for _, key := range pveconf.Unsupported(plan.conf) {
		t.Logf("WARN: %s is kept but has no effect in this version", key)
	}
	var made []storage.Volume
	defer func() {
		var keep *keepVolumes
		if err != nil && !errors.As(err, &keep) {
			c.deleteVolumes(ctx, made)
		}
	}()
	for _, v := range plan.volumes {
		vol, err := c.makeVolume(ctx, v)
		if err != nil {
			return fmt.Errorf("%s: %w", v.key, err)
		}
		made = append(made, vol)
		t.Logf("%s: created volume %s of %d bytes", v.key, vol.ID, vol.Size)
		props := v.props.Without("import-from", "format").Set("file", vol.ID).Set("size", printSize(vol.Size))
		if err := plan.conf.Set(v.key, props.Print(pveconf.DiskFormat())); err != nil {
			return err
		}
	}
	node, err := c.st.Get(ctx, model.NodePrefix+c.node, store.Linearizable)
	if err != nil {
		return writeError("create guest "+id.String(), err)
	}
	key := model.GuestConfigKey(c.node, id)
	_, err = c.st.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: model.VMIDPrefix + id.String()}, {Key: key}, {Key: model.NodePrefix + c.node, Revision: node.ModRevision}},
		Then: []store.Op{store.Put(model.VMIDPrefix+id.String(), []byte(c.node)), store.Put(key, plan.conf.Bytes())},
	})
	switch {
	case errors.Is(err, store.ErrConflict):
		return model.Errorf(model.ErrExists, "unable to create VM %s - VM %s already exists", id, id)
	case errors.Is(err, store.ErrNoQuorum):
		return c.createdAfterAll(ctx, id, plan.conf.Bytes(), made, t)
	}
	return writeError("create guest "+id.String(), err)
}

// createdAfterAll finds out whether a transaction whose answer was lost was committed. While nobody knows, and
// a late commit is always possible, the volumes are kept: a guest without its disks is worse than a volume without a guest.
func (c *creation) createdAfterAll(ctx context.Context, id model.VMID, want []byte, made []storage.Volume, t *task.Task) error {
	var kv store.KV
	err := retryNoQuorum(ctx, startDeadline, func() (err error) {
		kv, err = c.st.Get(ctx, model.GuestConfigKey(c.node, id), store.Linearizable)
		return err
	})
	if err == nil && bytes.Equal(kv.Value, want) {
		return nil
	}
	for _, v := range made {
		t.Logf("WARN: volume %s is kept: it is not certain that guest %s was not created", v.ID, id)
	}
	return &keepVolumes{writeError("create guest "+id.String(), store.ErrNoQuorum)}
}

// keepVolumes marks an error after which the volumes must not be touched any more.
type keepVolumes struct{ error }

func (e *keepVolumes) Unwrap() error { return e.error }

func (c *creation) makeVolume(ctx context.Context, v newVolume) (storage.Volume, error) {
	drv, err := c.storages.driver(v.storage)
	if err != nil {
		return storage.Volume{}, err
	}
	if v.file != "" {
		ctx, cancel := context.WithTimeout(ctx, importDeadline)
		defer cancel()
		return drv.Import(ctx, v.alloc, v.file)
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return drv.Allocate(ctx, v.alloc)
}

func (c *creation) deleteVolumes(ctx context.Context, vols []storage.Volume) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageDeadline)
	defer cancel()
	for _, v := range vols {
		name, _ := volumeStorage(v.ID)
		drv, err := c.storages.driver(name)
		if err == nil {
			err = drv.Delete(ctx, v.ID)
		}
		if err != nil {
			c.log.Warn("volume of a guest that was not created is left", "volume", v.ID, "err", err)
		}
	}
}

// printSize prints bytes as Proxmox VE does in a disk's size.
func printSize(n int64) string {
	for _, u := range []struct {
		size int64
		unit string
	}{{1 << 30, "G"}, {1 << 20, "M"}, {1 << 10, "K"}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.unit
		}
	}
	return strconv.FormatInt(n, 10)
}
