package agent

import (
	"slices"
	"sort"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// guestFile is a guest's file as the mirror has it.
type guestFile struct {
	id   model.VMID
	node string
	conf *pveconf.Guest // shared: nobody changes it; empty if the file cannot be read
	err  error          // why it cannot be read
	raw  []byte
	// revision is the file's, to be compared.
	revision int64
}

// guestFiles reads the guests' files from the mirror.
type guestFiles struct {
	node   string // this node
	mirror *mirror.Mirror
}

// list returns all guests' files by id. One that cannot be read still says who owns the guest.
func (f guestFiles) list() []guestFile { return guestFilesIn(f.mirror.Snapshot()) }

func guestFilesIn(s mirror.Snapshot) []guestFile {
	var out []guestFile
	for kv := range s.All(model.ConfigPrefix + "nodes/") {
		if node, id, ok := model.ParseGuestConfigKey(kv.Key); ok {
			out = append(out, guestFileOf(s, kv.Key, kv.Value, node, id))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].id < out[j].id })
	return out
}

func guestFileOf(s mirror.Snapshot, key string, raw []byte, node string, id model.VMID) guestFile {
	r, err := mirror.Decode(s, key, pveconf.ParseGuest)
	if err != nil {
		r.Value = &pveconf.Guest{}
	}
	return guestFile{id: id, node: node, conf: r.Value, err: err, raw: raw, revision: r.Revision}
}

// owner says under whose path a guest's file is.
func (f guestFiles) owner(id model.VMID) (guestFile, error) {
	s := f.mirror.Snapshot()
	for kv := range s.All(model.ConfigPrefix + "nodes/") {
		if node, got, ok := model.ParseGuestConfigKey(kv.Key); ok && got == id {
			return guestFileOf(s, kv.Key, kv.Value, node, id), nil
		}
	}
	return guestFile{}, noGuest(id)
}

func noGuest(id model.VMID) error {
	return model.Errorf(model.ErrNotFound, "guest %s does not exist: `sauh vm list` shows the guests there are", id)
}

// own is owner for a guest that must be this node's. Its file may be one that cannot be read.
func (f guestFiles) own(id model.VMID) (guestFile, error) {
	g, err := f.owner(id)
	if err == nil && g.node != f.node {
		err = model.Errorf(model.ErrNotFound, "Configuration file '%s' does not exist: guest %s is on node %s", model.GuestConfigPath(f.node, id), id, g.node)
	}
	return g, err
}

// readable is own for a guest whose configuration is needed.
func (f guestFiles) readable(id model.VMID) (guestFile, error) {
	g, err := f.own(id)
	if err == nil {
		err = g.err
	}
	return g, err
}

// of lists the guests under a node's path.
func (f guestFiles) of(node string) []model.VMID {
	var out []model.VMID
	for kv := range f.mirror.Snapshot().All(model.ConfigPrefix + "nodes/" + node + "/") {
		if _, id, ok := model.ParseGuestConfigKey(kv.Key); ok {
			out = append(out, id)
		}
	}
	return out
}

func joinIDs(ids []model.VMID) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = id.String()
	}
	return strings.Join(words, ", ")
}

// volumesOf splits disks into the storages they are on and, in
// local, one that no other node has ("" if there is none).
func volumesOf(disks []pveconf.Disk, all []pveconf.Storage) (storages []string, local string) {
	for _, d := range disks {
		if d.Volume == "none" {
			continue // a drive without a medium
		}
		name, ok := volumeStorage(d.Volume)
		if !ok {
			local = d.Key + " is the file " + d.Volume
			continue
		}
		storages = append(storages, name)
		if i := slices.IndexFunc(all, func(s pveconf.Storage) bool { return s.ID == name }); i >= 0 && !all[i].Shared {
			local = d.Key + " is on storage " + name + ", which is not shared"
		}
	}
	return storages, local
}
