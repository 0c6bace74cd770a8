package agent

import (
	"slices"
	"sort"
	"strings"
	"sync"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// guestFile is a guest's file as the mirror has it.
type guestFile struct {
	id       model.VMID
	node     string
	conf     *pveconf.Guest
	raw      []byte
	revision int64
}

// guestFiles lists all guests' files by id. A file that cannot be read is an
// empty configuration here: it still says who owns the guest.
func (m *member) guestFiles() []guestFile { return guestFilesIn(m.mirror.Snapshot()) }

func guestFilesIn(s mirror.Snapshot) []guestFile {
	var out []guestFile
	for kv := range s.All(model.ConfigPrefix + "nodes/") {
		node, id, ok := model.ParseGuestConfigKey(kv.Key)
		if !ok {
			continue
		}
		r, err := mirror.Decode(s, kv.Key, pveconf.ParseGuest)
		conf := r.Value
		if err != nil { // which is in the log
			conf = &pveconf.Guest{}
		}
		out = append(out, guestFile{id: id, node: node, conf: conf, raw: kv.Value, revision: kv.ModRevision})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].id < out[j].id })
	return out
}

// owner says under whose path a guest's file is, from the mirror.
func (m *member) owner(id model.VMID) (guestFile, error) {
	for kv := range m.mirror.Snapshot().All(model.ConfigPrefix + "nodes/") {
		if node, got, ok := model.ParseGuestConfigKey(kv.Key); ok && got == id {
			return guestFile{id: id, node: node, raw: kv.Value, revision: kv.ModRevision}, nil
		}
	}
	return guestFile{}, noGuest(id)
}

func noGuest(id model.VMID) error {
	return model.Errorf(model.ErrNotFound, "guest %s does not exist: `sauh vm list` shows the guests there are", id)
}

// guestFile reads a guest's file from the mirror.
func (m *member) guestFile(id model.VMID) (node string, conf *pveconf.Guest, err error) {
	g, err := m.owner(id)
	if err != nil {
		return "", nil, err
	}
	conf, err = pveconf.ParseGuest(g.raw)
	if err != nil {
		return g.node, &pveconf.Guest{}, err
	}
	return g.node, conf, nil
}

// ownGuestFile is guestFile for a guest that must be this node's.
func (m *member) ownGuestFile(id model.VMID) (guestFile, error) {
	g, err := m.owner(id)
	if err != nil {
		return g, err
	}
	if g.node != m.name {
		return g, model.Errorf(model.ErrNotFound, "Configuration file '%s' does not exist: guest %s is on node %s", model.GuestConfigPath(m.name, id), id, g.node)
	}
	g.conf, err = pveconf.ParseGuest(g.raw)
	return g, err
}

func (m *member) guestsOf(node string) []model.VMID {
	var out []model.VMID
	for kv := range m.mirror.Snapshot().All(model.ConfigPrefix + "nodes/" + node + "/") {
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

// volumes splits a guest's volumes into the storages they are on and, in
// local, the first that no other node has ("" if there is none).
func (m *member) volumes(conf *pveconf.Guest) (storages []string, local string) {
	all, err := m.storages()
	if err != nil {
		m.log.Error("storage.cfg cannot be read", "err", err)
	}
	return volumesOf(conf, all)
}

func volumesOf(conf *pveconf.Guest, all []pveconf.Storage) (storages []string, local string) {
	for _, d := range conf.Disks() {
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

// localReason says what ties a guest to its node, "" for nothing.
func (m *member) localReason(conf *pveconf.Guest) string {
	_, local := m.volumes(conf)
	return local
}

// guestLocks serialises the operations on each guest of this node.
type guestLocks struct {
	// released is told after each unlock.
	released func()
	mu       sync.Mutex
	held     map[model.VMID]string // what holds it; guarded by mu
}

func newGuestLocks(released func()) *guestLocks {
	return &guestLocks{released: released, held: map[model.VMID]string{}}
}

// tryLock takes the guest's lock for an operation, or says which one has it.
func (l *guestLocks) tryLock(id model.VMID, what string) (unlock func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if by, ok := l.held[id]; ok {
		return nil, model.Errorf(model.ErrBusy, "guest %s is busy (%s): wait until that is done", id, by)
	}
	l.held[id] = what
	return func() {
		l.mu.Lock()
		delete(l.held, id)
		l.mu.Unlock()
		l.released()
	}, nil
}

// holders maps each locked guest to what holds it.
func (l *guestLocks) holders() map[model.VMID]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[model.VMID]string, len(l.held))
	for id, by := range l.held {
		out[id] = by
	}
	return out
}
