package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/storage/dir"
	"sauh.dev/sauh/internal/store"
)

// storagesAPI is the agent in its role as api.Storages.
type storagesAPI Agent

const (
	storageCfgKey = model.ConfigPrefix + "storage.cfg"
	// storageDeadline bounds each question to a storage.
	storageDeadline = 10 * time.Second
	// importDeadline bounds the copy of an image: 100 GiB at 30 MiB/s.
	importDeadline = time.Hour
)

func (s *storagesAPI) member() (*member, error) { return (*Agent)(s).member() }

// storages reads storage.cfg from the mirror.
func (m *member) storages() ([]pveconf.Storage, error) {
	r, err := mirror.Decode(m.mirror.Snapshot(), storageCfgKey, pveconf.ParseStorages)
	return r.Value, err
}

func (m *member) storageConfig(name string) (pveconf.Storage, error) {
	all, err := m.storages()
	if err != nil {
		return pveconf.Storage{}, err
	}
	for _, s := range all {
		if s.ID == name {
			return s, nil
		}
	}
	return pveconf.Storage{}, model.Errorf(model.ErrNotFound, "storage '%s' does not exist", name)
}

// driver opens a storage that this node may use.
func (m *member) driver(name string) (storage.Driver, error) {
	s, err := m.storageConfig(name)
	if err != nil {
		return nil, err
	}
	return openStorage(s, m.name)
}

func openStorage(s pveconf.Storage, node string) (storage.Driver, error) {
	switch {
	case s.Unsupported != "":
		return nil, model.Errorf(model.ErrUnavailable, "storage '%s' cannot be used: %s", s.ID, s.Unsupported)
	case s.Disable:
		return nil, model.Errorf(model.ErrUnavailable, "storage '%s' is disabled", s.ID)
	case !s.OnNode(node):
		return nil, model.Errorf(model.ErrUnavailable, "storage '%s' is not for node %s (it is for %s)", s.ID, node, strings.Join(s.Nodes, ", "))
	}
	return dir.New(dir.Config{Name: s.ID, Path: s.Path, Shared: s.Shared, LateWrites: s.LateWrites, Content: s.Content, Mountpoint: s.Mountpoint})
}

// volumeStorage is the storage's name in a volume id; ok is false for a path.
func volumeStorage(volid string) (string, bool) {
	name, _, ok := strings.Cut(volid, ":")
	return name, ok && !strings.HasPrefix(volid, "/")
}

// ListStorages implements api.Storages.
func (s *storagesAPI) ListStorages(ctx context.Context) ([]api.StorageInfo, error) {
	m, err := s.member()
	if err != nil {
		return nil, err
	}
	all, err := m.storages()
	if err != nil {
		return nil, err
	}
	out := make([]api.StorageInfo, 0, len(all))
	for _, st := range all {
		info := api.StorageInfo{Storage: st.ID, Type: st.Type, Path: st.Path, Content: strings.Join(st.Content, ","), Shared: st.Shared}
		d, err := openStorage(st, m.name)
		if err == nil {
			cctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			info.Capacity, err = d.Capacity(cctx)
			cancel()
		}
		if info.Active = err == nil; err != nil {
			info.Reason = err.Error()
		}
		out = append(out, info)
	}
	return out, nil
}

// AddStorage implements api.Storages.
func (s *storagesAPI) AddStorage(ctx context.Context, name string, params map[string]string) error {
	m, err := s.member()
	if err != nil {
		return err
	}
	if err := pveconf.ValidateStorageID(name); err != nil {
		return err
	}
	sec := pveconf.Section{Type: params["type"], ID: name}
	keys := make([]string, 0, len(params))
	for k := range params {
		if k != "type" && k != "storage" {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		sec = sec.With(k, params[k])
	}
	add, err := pveconf.StorageFromSection(sec)
	if err != nil {
		return err
	}
	if add.Unsupported != "" {
		return model.Invalidf("type", "storage type %q cannot be used: %s", add.Type, add.Unsupported)
	}
	if d, err := openStorage(add, m.name); err == nil {
		cctx, cancel := context.WithTimeout(ctx, storageDeadline)
		defer cancel()
		if _, err := d.Capacity(cctx); err != nil {
			return err
		}
	} else if add.OnNode(m.name) {
		return err
	}
	return m.editStorages(ctx, "add storage "+name, func(all []pveconf.Storage) ([]pveconf.Storage, error) {
		for _, x := range all {
			if x.ID == name {
				return nil, model.Errorf(model.ErrExists, "storage ID '%s' already exists", name)
			}
		}
		return append(all, add), nil
	})
}

// RemoveStorage implements api.Storages: the entry goes, the data stays.
func (s *storagesAPI) RemoveStorage(ctx context.Context, name string) error {
	m, err := s.member()
	if err != nil {
		return err
	}
	for _, g := range m.guestFiles() {
		for _, d := range g.conf.Disks() {
			if st, ok := volumeStorage(d.Volume); ok && st == name {
				return model.Errorf(model.ErrBusy, "storage '%s' holds %s of guest %s: move or destroy that first", name, d.Key, g.id)
			}
		}
	}
	return m.editStorages(ctx, "remove storage "+name, func(all []pveconf.Storage) ([]pveconf.Storage, error) {
		i := slices.IndexFunc(all, func(x pveconf.Storage) bool { return x.ID == name })
		if i < 0 {
			return nil, model.Errorf(model.ErrNotFound, "storage '%s' does not exist", name)
		}
		return slices.Delete(all, i, i+1), nil
	})
}

func (m *member) editStorages(ctx context.Context, what string, f func([]pveconf.Storage) ([]pveconf.Storage, error)) error {
	return editFile(ctx, m.st, what, storageCfgKey, func(old []byte) ([]byte, error) {
		all, err := pveconf.ParseStorages(old)
		if err != nil {
			return nil, err
		}
		if all, err = f(all); err != nil {
			return nil, err
		}
		return pveconf.PrintStorages(all)
	})
}

// Content implements api.Storages.
func (s *storagesAPI) Content(ctx context.Context, name string) ([]storage.Volume, error) {
	d, err := s.open(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.List(ctx)
}

func (s *storagesAPI) open(name string) (storage.Driver, error) {
	m, err := s.member()
	if err != nil {
		return nil, err
	}
	return m.driver(name)
}

// AllocateVolume implements api.Storages.
func (s *storagesAPI) AllocateVolume(ctx context.Context, name string, a storage.Allocation) (storage.Volume, error) {
	d, err := s.open(name)
	if err != nil {
		return storage.Volume{}, err
	}
	if m, err := s.member(); err == nil && !m.st.Quorate() {
		return storage.Volume{}, writeError("allocate a volume on "+name, store.ErrNoQuorum)
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.Allocate(ctx, a)
}

// DeleteVolume implements api.Storages. A volume that a guest's configuration names is refused.
func (s *storagesAPI) DeleteVolume(ctx context.Context, volid string) error {
	m, err := s.member()
	if err != nil {
		return err
	}
	name, ok := volumeStorage(volid)
	if !ok {
		return model.Invalidf("volume", "%q is not a volume id: use <storage>:<name> as `sauh storage content` prints it", volid)
	}
	for _, g := range m.guestFiles() {
		for _, d := range g.conf.Disks() {
			if d.Volume == volid {
				return model.Errorf(model.ErrBusy, "volume %s is %s of guest %s on %s: detach it first", volid, d.Key, g.id, g.node)
			}
		}
	}
	if !m.st.Quorate() {
		return writeError("delete "+volid, store.ErrNoQuorum)
	}
	d, err := m.driver(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.Delete(ctx, volid)
}
