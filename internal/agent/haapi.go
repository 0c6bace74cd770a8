package agent

import (
	"context"
	"errors"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// haAPI is high availability as a person sees and changes it. It implements api.HA, api.HARules, api.HAControl, api.HAFencing and
// api.DatacenterOptions: files are edited under their digest, wishes are records that the manager and the workers read, and what
// is shown comes from the mirror. It decides nothing.
type haAPI struct {
	*resources
	node   string
	params ha.Params
	// view is the cluster as this node's manager sees it.
	view func() ha.View
	// fencing are the drivers behind ha/fence.cfg.
	fencing fenceDrivers
	beacons *beacons
	// end begins the orderly end of this node.
	end func(ctx context.Context, reboot bool) error
	// drain is the same without the machine's own end; it returns when that may come.
	drain func(ctx context.Context, reboot bool) error
}

// decodeKept is a file of the mirror that was read, and its digest.
func decodeKept[T any](s mirror.Snapshot, key string, parse func([]byte) (T, error)) (value T, digest string, err error) {
	rec, err := mirror.Decode(s, key, parse)
	kv, _ := s.Get(key)
	return rec.Value, pveconf.Digest(kv.Value), inFile(key, err)
}

func checkDigest(file []byte, digest string) error {
	if digest != "" && digest != pveconf.Digest(file) {
		return model.Errorf(model.ErrConflict, "detected modified configuration - file changed by other user? Try again.")
	}
	return nil
}

// sectionEdit is one change of a section file. A file that cannot be read is not written over.
type sectionEdit struct {
	what, key, digest string
	// change does it. check judges the file before, with old nil, and after.
	change func(*pveconf.SectionFile) error
	check  func(old, next []byte) error
	// also is written with the file or not at all.
	also []store.KV
}

func (h *resources) editSections(ctx context.Context, e sectionEdit) error {
	return editFile(ctx, h.st, e.what, e.key, func(old []byte) ([]byte, error) {
		if err := checkDigest(old, e.digest); err != nil {
			return nil, err
		}
		if old == nil {
			old = []byte{} // there is none yet
		}
		f, err := pveconf.ParseSections(old)
		if err != nil {
			return nil, inFile(e.key, err)
		}
		if err := e.check(nil, old); err != nil {
			return nil, inFile(e.key, err)
		}
		if err := e.change(&f); err != nil {
			return nil, err
		}
		next, err := f.Print()
		if err != nil {
			return nil, err
		}
		return next, e.check(old, next)
	}, e.also...)
}

// inFile names the file whose line cannot be read; that is no parameter of the person who asks.
func inFile(key string, err error) error {
	var inv *model.InvalidError
	if !errors.As(err, &inv) {
		return err
	}
	return &model.InvalidError{
		Param: strings.TrimPrefix(key, model.ConfigPrefix), Line: inv.Line, Msg: inv.Param + ": " + inv.Msg + "; mend it first, until then nothing is changed",
	}
}

// apply makes the edit in a section and has one that results read by parse.
func apply[T any](s *pveconf.Section, e api.Edit, parse func(pveconf.Section) (T, error)) error {
	out := *s
	for _, key := range e.Delete {
		if _, both := e.Set[key]; both {
			return model.Invalidf(key, "it cannot be set and deleted at once")
		}
		out = out.Without(key)
	}
	for _, key := range sortedKeys(e.Set) {
		out = out.With(key, e.Set[key])
	}
	// What is wrong is the parameter that was given, not a line of a file that nobody has seen yet.
	asked := out
	asked.Line, asked.Options = 0, slices.Clone(out.Options)
	for i := range asked.Options {
		asked.Options[i].Line = 0
		if strings.ContainsAny(asked.Options[i].Value, "\r\n") {
			return model.Invalidf(asked.Options[i].Key, "must stand on one line")
		}
	}
	if _, err := parse(asked); err != nil {
		return err
	}
	*s = out
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// findSection is where the section with that id is, -1 for nowhere; typ "" is any.
func findSection(f pveconf.SectionFile, typ, id string) int {
	return slices.IndexFunc(f.Sections, func(s pveconf.Section) bool { return (typ == "" || s.Type == typ) && s.ID == id })
}

// apiSections are a file's sections for the API.
func apiSections(all []pveconf.Section, digest string) api.Sections {
	out := api.Sections{List: make([]api.Section, 0, len(all)), Digest: digest}
	for _, s := range all {
		out.List = append(out.List, apiSection(s))
	}
	return out
}

func apiSection(s pveconf.Section) api.Section {
	out := api.Section{Type: s.Type, ID: s.ID, Values: map[string]string{}}
	for _, o := range s.Options {
		out.Values[o.Key] = o.Value
	}
	return out
}

// HAResources implements api.HA.
func (h *haAPI) HAResources(context.Context) ([]api.HAResource, error) {
	all, digest, err := decodeKept(h.mirror.Snapshot(), haResourcesKey, pveconf.ParseHAResources)
	if err != nil {
		return nil, err
	}
	out := make([]api.HAResource, 0, len(all))
	for _, r := range all {
		row := api.HAResource{
			SID: r.SID(), State: string(r.State), Comment: r.Comment, Digest: digest, MaxRestart: r.MaxRestart, MaxRelocate: r.MaxRelocate,
			Failback: r.Failback, Rebalance: r.AutoRebalance, Values: apiSection(r.Section).Values,
		}
		delete(row.Values, "state")
		delete(row.Values, "comment")
		out = append(out, row)
	}
	return out, nil
}

// HAAdd implements api.HA.
func (h *haAPI) HAAdd(ctx context.Context, r api.HAResource) error {
	id, err := pveconf.ParseSID(r.SID)
	if err != nil {
		return err
	}
	f, err := h.files.owner(id)
	if err == nil {
		err = f.err
	}
	if err != nil {
		return err
	}
	set, err := h.storages.known()
	if err != nil {
		return err
	}
	if why := set.localReason(f.conf.Disks()); why != "" {
		return model.Invalidf("sid", "vm:%s cannot be protected: %s, and no other node could start it", id, why)
	}
	e := api.Edit{Set: map[string]string{"state": "started"}}
	for k, v := range r.Values {
		e.Set[k] = v
	}
	if r.State != "" && r.State != "enabled" {
		e.Set["state"] = r.State
	}
	if r.Comment != "" {
		e.Set["comment"] = r.Comment
	}
	err = h.editResources(ctx, "add "+r.SID, "", func(file *pveconf.SectionFile) error {
		if findSection(*file, "vm", id.String()) >= 0 {
			return model.Errorf(model.ErrExists, "resource ID 'vm:%s' already defined: change it with `sauh ha set`", id)
		}
		s := pveconf.Section{Type: "vm", ID: id.String()}
		err := apply(&s, e, pveconf.HAResourceFromSection)
		file.Sections = append(file.Sections, s)
		return err
	})
	if err == nil {
		h.log.Info("HA resource added", "vmid", id, "node", f.node)
	}
	return err
}

func (h *haAPI) editResources(ctx context.Context, what, digest string, change func(*pveconf.SectionFile) error) error {
	return h.editSections(ctx, sectionEdit{what: what, key: haResourcesKey, digest: digest, change: change, check: checkResources})
}

// checkResources refuses resources that would wait for one another, or for what nobody starts.
func checkResources(old, next []byte) error {
	all, err := pveconf.ParseHAResources(next)
	if err != nil || old == nil {
		return err
	}
	after := map[model.VMID][]model.VMID{}
	for _, r := range all {
		for _, a := range r.After {
			after[r.VMID] = append(after[r.VMID], a.VMID)
			if findResource(all, a.VMID) < 0 {
				return model.Invalidf("after", "%s waits for %s, which is no HA resource: add that with `sauh ha add` first", r.SID(), a.VMID.SID())
			}
		}
	}
	for _, r := range all {
		if circle := circleFrom(after, r.VMID); circle != nil {
			return model.Invalidf("after", "they would wait for each other: %s", sids(circle, " after "))
		}
	}
	return nil
}

// circleFrom is the shortest way by which a resource waits for itself, nil if it does not.
func circleFrom(after map[model.VMID][]model.VMID, from model.VMID) []model.VMID {
	queue := [][]model.VMID{{from}}
	seen := map[model.VMID]bool{}
	for len(queue) > 0 {
		way := queue[0]
		queue = queue[1:]
		for _, next := range after[way[len(way)-1]] {
			longer := append(slices.Clone(way), next)
			if next == from {
				return longer
			}
			if !seen[next] {
				seen[next] = true
				queue = append(queue, longer)
			}
		}
	}
	return nil
}

func sids(ids []model.VMID, between string) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = id.SID()
	}
	return strings.Join(words, between)
}

// HASet implements api.HA.
func (h *haAPI) HASet(ctx context.Context, sid string, e api.Edit) error {
	id, err := pveconf.ParseSID(sid)
	if err != nil {
		return err
	}
	if e.Set["state"] == "enabled" {
		e.Set["state"] = "started"
	}
	return h.editResources(ctx, "change "+sid, e.Digest, func(file *pveconf.SectionFile) error {
		i := findSection(*file, "vm", id.String())
		if i < 0 {
			return noResource(id)
		}
		return apply(&file.Sections[i], e, pveconf.HAResourceFromSection)
	})
}

// HARemove implements api.HA. The guest runs on, unprotected.
func (h *haAPI) HARemove(ctx context.Context, sid string, purge bool) error {
	id, err := pveconf.ParseSID(sid)
	if err != nil {
		return err
	}
	err = h.editResources(ctx, "remove "+sid, "", func(file *pveconf.SectionFile) error {
		i := findSection(*file, "vm", id.String())
		if i < 0 {
			return noResource(id)
		}
		file.Sections = slices.Delete(file.Sections, i, i+1)
		return stopWaitingFor(file, id)
	})
	if err != nil {
		return err
	}
	h.forget(ctx, model.HAStatusPrefix+id.SID())
	h.forget(ctx, model.HACommandPrefix+id.SID())
	if purge {
		return h.purgeRules(ctx, id.SID())
	}
	return nil
}

// stopWaitingFor takes a resource that is gone out of the lists of those that start after it.
func stopWaitingFor(file *pveconf.SectionFile, id model.VMID) error {
	for i, s := range file.Sections {
		r, err := pveconf.HAResourceFromSection(s)
		if err != nil {
			return err
		}
		var words []string
		for _, a := range r.After {
			if a.VMID != id {
				words = append(words, a.String())
			}
		}
		switch {
		case len(words) == len(r.After):
		case len(words) == 0:
			file.Sections[i] = s.Without("after")
		default:
			file.Sections[i] = s.With("after", strings.Join(words, ","))
		}
	}
	return nil
}

// forget deletes a record of a resource that is none any more; left behind it would only mislead.
func (h *haAPI) forget(ctx context.Context, key string) {
	kv, err := h.st.Get(ctx, key, store.Linearizable)
	if err != nil {
		return // there is none, or no quorum
	}
	_, err = h.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Delete(key)}})
	if err != nil {
		h.log.Info("an HA record is left behind", "key", key, "err", err)
	}
}
