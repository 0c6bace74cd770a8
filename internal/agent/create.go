package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
)

// Create implements api.Guests: everything that can be refused is refused
// before a volume is made, and the volumes go again when the rest fails.
func (g *guestsAPI) Create(_ context.Context, r api.CreateGuestRequest) (string, error) {
	m, err := g.member()
	if err != nil {
		return "", err
	}
	if r.VMID < model.MinVMID || r.VMID > model.MaxVMID {
		return "", model.Invalidf("vmid", "%s is not a guest id: use a number from %d to %d", r.VMID, model.MinVMID, model.MaxVMID)
	}
	if f, err := m.owner(r.VMID); err == nil {
		return "", model.Errorf(model.ErrExists, "unable to create VM %s - VM %s already exists on node '%s'", r.VMID, r.VMID, f.node)
	}
	if !m.st.Quorate() {
		return "", writeError("create guest "+r.VMID.String(), store.ErrNoQuorum)
	}
	plan, err := m.planGuest(r)
	if err != nil {
		return "", err
	}
	return m.guestTask("qmcreate", r.VMID, "create", func(ctx context.Context, t *task.Task) error {
		if err := m.create(ctx, r.VMID, plan, t); err != nil {
			return err
		}
		if !r.Start {
			return nil
		}
		if err := m.startGuest(ctx, startRequest{id: r.VMID, log: t.Logf}); err != nil {
			return fmt.Errorf("it was created and stays, but does not start: %w", err)
		}
		return nil
	})
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
func (m *member) planGuest(r api.CreateGuestRequest) (*newGuest, error) {
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
		case indexed && (family == "virtio" || family == "scsi"):
			err = m.planDisk(plan, r.VMID, k, v)
		default:
			err = plan.conf.Set(k, v)
		}
		if err != nil {
			return nil, err
		}
	}
	meta := fmt.Sprintf("creation-qemu=%s,ctime=%d", m.qemuVersion(), time.Now().Unix())
	if _, ok := plan.conf.Get("smbios1"); !ok {
		if err := plan.conf.Set("smbios1", "uuid="+newUUID()); err != nil {
			return nil, err
		}
	}
	return plan, plan.conf.Set("meta", meta)
}

func (m *member) qemuVersion() string {
	_, v, err := m.agent.host.qemu()
	if err != nil {
		return "unknown"
	}
	return v
}

// maxGiB is where a size in bytes does not fit into 63 bits any more.
const maxGiB = 1 << 33

// planDisk understands <storage>:<GiB>[,format=…][,import-from=FILE] beside the volumes there are.
func (m *member) planDisk(plan *newGuest, id model.VMID, key, value string) error {
	disk, err := pveconf.ParseDisk(key, value)
	if err != nil {
		return err
	}
	name, isVolume := volumeStorage(disk.Volume)
	if !isVolume {
		return plan.conf.Set(key, value)
	}
	drv, err := m.driver(name)
	if err != nil {
		return model.Invalidf(key, "%v", err)
	}
	gib, err := strconv.ParseFloat(strings.TrimPrefix(disk.Volume, name+":"), 64)
	if err != nil { // the name of a volume
		ctx, cancel := context.WithTimeout(m.ctx, storageDeadline)
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

func (m *member) create(ctx context.Context, id model.VMID, plan *newGuest, t *task.Task) (err error) {
	var made []storage.Volume
	defer func() {
		var keep *keepVolumes
		if err != nil && !errors.As(err, &keep) {
			m.deleteVolumes(made)
		}
	}()
	for _, v := range plan.volumes {
		vol, err := m.makeVolume(ctx, v)
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
	node, err := m.st.Get(ctx, model.NodePrefix+m.name, store.Linearizable)
	if err != nil {
		return writeError("create guest "+id.String(), err)
	}
	key := model.GuestConfigKey(m.name, id)
	_, err = m.st.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: reservationKey(id)}, {Key: key}, {Key: model.NodePrefix + m.name, Revision: node.ModRevision}},
		Then: []store.Op{store.Put(reservationKey(id), []byte(m.name)), store.Put(key, plan.conf.Bytes())},
	})
	switch {
	case errors.Is(err, store.ErrConflict):
		return model.Errorf(model.ErrExists, "unable to create VM %s - VM %s already exists", id, id)
	case errors.Is(err, store.ErrNoQuorum):
		return m.createdAfterAll(ctx, id, plan.conf.Bytes(), made, t)
	}
	return writeError("create guest "+id.String(), err)
}

// createdAfterAll finds out whether a transaction whose answer was lost was committed. While nobody knows, and
// a late commit is always possible, the volumes are kept: a guest without its disks is worse than a volume without a guest.
func (m *member) createdAfterAll(ctx context.Context, id model.VMID, want []byte, made []storage.Volume, t *task.Task) error {
	var kv store.KV
	err := retryNoQuorum(ctx, startDeadline, func() (err error) {
		kv, err = m.st.Get(ctx, model.GuestConfigKey(m.name, id), store.Linearizable)
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

func (m *member) makeVolume(ctx context.Context, v newVolume) (storage.Volume, error) {
	drv, err := m.driver(v.storage)
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

func (m *member) deleteVolumes(vols []storage.Volume) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), storageDeadline)
	defer cancel()
	for _, v := range vols {
		name, _ := volumeStorage(v.ID)
		drv, err := m.driver(name)
		if err == nil {
			err = drv.Delete(ctx, v.ID)
		}
		if err != nil {
			m.log.Warn("volume of a guest that was not created is left", "volume", v.ID, "err", err)
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
