package agent

import (
	"context"
	"fmt"
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

// storages are the cluster's storages as this node uses them; it implements api.Storages.
type storages struct {
	node    string
	st      store.Store
	mirror  *mirror.Mirror
	files   guestFiles
	quorate func() bool
}

const (
	storageCfgKey = model.ConfigPrefix + "storage.cfg"
	// storageDeadline bounds each question to a storage.
	storageDeadline = 10 * time.Second
	// importDeadline bounds the copy of an image: 100 GiB at 30 MiB/s.
	importDeadline = time.Hour
)

// storageSet is storage.cfg at one revision, on one node.
type storageSet struct {
	node string
	all  []pveconf.Storage
}

// known is storage.cfg as the mirror has it.
func (s *storages) known() (storageSet, error) {
	r, err := mirror.Decode(s.mirror.Snapshot(), storageCfgKey, pveconf.ParseStorages)
	return storageSet{s.node, r.Value}, err
}

// read is storage.cfg, read linearizably: for whoever decides whether and how a guest is guarded.
func (s *storages) read(ctx context.Context) (storageSet, error) {
	all, err := readInForce(ctx, s.st, storageCfgKey, pveconf.ParseStorages)
	if err != nil {
		return storageSet{}, writeError("read storage.cfg", err)
	}
	return storageSet{s.node, all}, nil
}

// driver opens a storage that this node may use.
func (s storageSet) driver(name string) (storage.Driver, error) {
	for _, x := range s.all {
		if x.ID == name {
			return openStorage(x, s.node)
		}
	}
	return nil, model.Errorf(model.ErrNotFound, "storage '%s' does not exist", name)
}

// of names the storages of disks, each once, in order.
func (s storageSet) of(disks []pveconf.Disk) []string {
	names, _ := volumesOf(disks, s.all)
	slices.Sort(names)
	return slices.Compact(names)
}

// localReason says which of the disks ties a guest to its node, "" for none.
func (s storageSet) localReason(disks []pveconf.Disk) string {
	_, local := volumesOf(disks, s.all)
	return local
}

// driver opens a storage that the mirror knows and this node may use.
func (s *storages) driver(name string) (storage.Driver, error) {
	set, err := s.known()
	if err != nil {
		return nil, err
	}
	return set.driver(name)
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
func (s *storages) ListStorages(ctx context.Context) ([]api.StorageInfo, error) {
	set, err := s.known()
	if err != nil {
		return nil, err
	}
	out := make([]api.StorageInfo, 0, len(set.all))
	for _, st := range set.all {
		info := api.StorageInfo{Storage: st.ID, Type: st.Type, Path: st.Path, Content: strings.Join(st.Content, ","), Shared: st.Shared, LateWrites: st.LateWrites}
		d, err := openStorage(st, s.node)
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
func (s *storages) AddStorage(ctx context.Context, name string, params map[string]string) error {
	if err := pveconf.ValidateStorageID(name); err != nil {
		return err
	}
	if content, given := params["content"]; given && content != "images" {
		return model.Invalidf("content", "a storage of this version holds images and nothing else: write images, or leave it out")
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
	if d, err := openStorage(add, s.node); err == nil {
		cctx, cancel := context.WithTimeout(ctx, storageDeadline)
		defer cancel()
		if _, err := d.Capacity(cctx); err != nil {
			return err
		}
	} else if add.OnNode(s.node) {
		return err
	}
	return s.edit(ctx, "add storage "+name, func(all []pveconf.Storage) ([]pveconf.Storage, error) {
		for _, x := range all {
			if x.ID == name {
				return nil, model.Errorf(model.ErrExists, "storage ID '%s' already exists", name)
			}
			if x.Path == add.Path && x.Path != "" && sameNodes(x.Nodes, add.Nodes) {
				return nil, model.Invalidf("path", "storage %s has the directory %s already", x.ID, x.Path)
			}
		}
		return append(all, add), nil
	})
}

// sameNodes reports whether two lists of nodes, of which an empty one means all, have one in common.
func sameNodes(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(n string) bool { return slices.Contains(b, n) })
}

// RemoveStorage implements api.Storages: the entry goes, the data stays.
func (s *storages) RemoveStorage(ctx context.Context, name string) error {
	for _, g := range s.files.list() {
		for _, d := range g.conf.Disks() {
			if st, ok := volumeStorage(d.Volume); ok && st == name {
				return model.Errorf(model.ErrBusy, "storage '%s' holds %s of guest %s: move or destroy that first", name, d.Key, g.id)
			}
		}
	}
	return s.edit(ctx, "remove storage "+name, func(all []pveconf.Storage) ([]pveconf.Storage, error) {
		i := slices.IndexFunc(all, func(x pveconf.Storage) bool { return x.ID == name })
		if i < 0 {
			return nil, model.Errorf(model.ErrNotFound, "storage '%s' does not exist", name)
		}
		return slices.Delete(all, i, i+1), nil
	})
}

func (s *storages) edit(ctx context.Context, what string, f func([]pveconf.Storage) ([]pveconf.Storage, error)) error {
	return editFile(ctx, s.st, what, storageCfgKey, func(old []byte) ([]byte, error) {
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
func (s *storages) Content(ctx context.Context, name string) ([]storage.Volume, error) {
	d, err := s.driver(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.List(ctx)
}

// AllocateVolume implements api.Storages.
func (s *storages) AllocateVolume(ctx context.Context, name string, a storage.Allocation) (storage.Volume, error) {
	d, err := s.driver(name)
	if err != nil {
		return storage.Volume{}, err
	}
	if !s.quorate() {
		return storage.Volume{}, writeError("allocate a volume on "+name, store.ErrNoQuorum)
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.Allocate(ctx, a)
}

// userOf says which guest's file names a volume as a disk: "virtio0 of guest 101 on n2"; "" for none but except's.
func (s *storages) userOf(volid string, except model.VMID) string {
	for _, g := range s.files.list() {
		for _, d := range g.conf.Disks() {
			if g.id != except && d.Volume == volid {
				return fmt.Sprintf("%s of guest %s on %s", d.Key, g.id, g.node)
			}
		}
	}
	return ""
}

// DeleteVolume implements api.Storages. A volume that a guest's configuration names is refused.
func (s *storages) DeleteVolume(ctx context.Context, volid string) error {
	name, ok := volumeStorage(volid)
	if !ok {
		return model.Invalidf("volume", "%q is not a volume id: use <storage>:<name> as `sauh storage content` prints it", volid)
	}
	if user := s.userOf(volid, 0); user != "" {
		return model.Errorf(model.ErrBusy, "volume %s is %s: detach it first", volid, user)
	}
	if !s.quorate() {
		return writeError("delete "+volid, store.ErrNoQuorum)
	}
	d, err := s.driver(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.Delete(ctx, volid)
}
