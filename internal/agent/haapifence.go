package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	corefence "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence"
	"sauh.dev/sauh/internal/store"
)

// fenceDrivers are the ways to fence a node as ha/fence.cfg configures them; *fencing is one.
type fenceDrivers interface {
	// methods are those of a node as they are worth now; nobody is asked.
	methods(node string) ([]fence.Said, error)
	// rehearse tries each on a node that runs, and notes how it went. With switching the node is really switched off.
	rehearse(ctx context.Context, node string, switching bool) ([]corefence.Rehearsal, error)
}

// haFencing is ha/fence.cfg and what is behind it. It implements api.HAFencing.
type haFencing struct {
	st      store.Store
	mirror  *mirror.Mirror
	roster  roster
	drivers fenceDrivers
}

const fenceSecretKey = model.ConfigPrefix + "priv/fence/"

// FenceFile implements api.HAFencing.
func (h *haFencing) FenceFile(context.Context) (api.HAFenceFile, error) {
	kv, _ := h.mirror.Snapshot().Get(fenceCfgKey)
	return api.HAFenceFile{Text: string(kv.Value), Digest: pveconf.Digest(kv.Value)}, nil
}

// checkFence refuses what could not be used: a method that is silently none is worse than none.
func (h *haFencing) checkFence(old, next []byte) error {
	all, err := pveconf.ParseFence(next)
	if err != nil || old == nil {
		return err
	}
	for _, m := range all {
		if m.Unsupported != "" {
			return &model.InvalidError{Param: "type", Line: m.Section.Line, Msg: m.Unsupported}
		}
	}
	var members []string
	for _, n := range h.roster.nodes() {
		members = append(members, n.Name)
	}
	if err := pveconf.FenceNodes(all, members); err != nil {
		return err
	}
	storages, err := mirror.Decode(h.mirror.Snapshot(), storageCfgKey, pveconf.ParseStorages)
	if err != nil {
		return err
	}
	return pveconf.FenceStorages(all, storageNames(storages.Value))
}

func storageNames(all []pveconf.Storage) []string {
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.ID
	}
	return names
}

// SetFenceFile implements api.HAFencing.
func (h *haFencing) SetFenceFile(ctx context.Context, text, digest string) error {
	if err := h.checkFence([]byte{}, []byte(text)); err != nil {
		return err
	}
	return editFile(ctx, h.st, "change ha/fence.cfg", fenceCfgKey, func(old []byte) ([]byte, error) {
		return []byte(text), checkDigest(old, digest)
	})
}

func noMethod(id string) error {
	return model.Errorf(model.ErrNotFound, "no such fencing method '%s': `sauh ha fence list` shows them", id)
}

func (h *haFencing) fenceEdit(what, digest string, change func(*pveconf.SectionFile) error) sectionEdit {
	return sectionEdit{what: what, key: fenceCfgKey, digest: digest, change: change, check: h.checkFence}
}

// SetFenceMethod implements api.HAFencing. A rehearsal never sees the line without its password, or the other way round.
func (h *haFencing) SetFenceMethod(ctx context.Context, id api.Section, e api.Edit, secret string) error {
	if secret == "" {
		if err := h.passwordThere(ctx, e.Set["password-file"]); err != nil {
			return err
		}
		return editSections(ctx, h.st, h.methodEdit(id, e))
	}
	file, err := secretFile(id.ID, secret)
	switch {
	case err != nil:
		return err
	case file == nil:
		return model.Invalidf("secret", "it is an empty line")
	}
	set := map[string]string{"password-file": strings.TrimPrefix(fenceSecretKey, model.ConfigPrefix) + id.ID}
	for key, value := range e.Set {
		if key == "password-file" && value != set[key] {
			return model.Invalidf(key, "a password that is given with the method goes to %s: leave the key out", set[key])
		}
		set[key] = value
	}
	e.Set = set
	return editSectionsAnd(ctx, h.st, h.methodEdit(id, e), fenceSecretKey+id.ID, file)
}

func (h *haFencing) methodEdit(id api.Section, e api.Edit) sectionEdit {
	return h.fenceEdit("change fencing method "+id.ID, e.Digest, func(f *pveconf.SectionFile) error {
		i := findSection(*f, "", id.ID)
		switch {
		case i < 0 && id.Type == "":
			return noMethod(id.ID)
		case i < 0:
			f.Sections = append(f.Sections, pveconf.Section{Type: id.Type, ID: id.ID})
			i = len(f.Sections) - 1
		case id.Type != "" && id.Type != f.Sections[i].Type:
			return model.Invalidf("type", "%s is of the type %s: remove it first, or give the new one another name", id.ID, f.Sections[i].Type)
		}
		return apply(&f.Sections[i], e, h.usableMethod)
	})
}

// passwordThere refuses a file of the configuration that is not there; "" is none.
func (h *haFencing) passwordThere(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	kv, err := read(ctx, h.st, model.ConfigPrefix+path)
	if err == nil && kv.ModRevision == 0 {
		return model.Invalidf("password-file", "the file %s does not exist: give the password itself with --password-stdin instead", path)
	}
	return err
}

// usableMethod reads one method, and refuses a node that is not there.
func (h *haFencing) usableMethod(s pveconf.Section) (pveconf.FenceMethod, error) {
	m, err := pveconf.FenceFromSection(s)
	switch {
	case err != nil:
		return m, err
	case m.Unsupported != "":
		return m, model.Invalidf("type", "%s", m.Unsupported)
	}
	if m.Type == pveconf.FenceCeph {
		storages, err := mirror.Decode(h.mirror.Snapshot(), storageCfgKey, pveconf.ParseStorages)
		if err != nil {
			return m, err
		}
		if err := pveconf.FenceStorages([]pveconf.FenceMethod{m}, storageNames(storages.Value)); err != nil {
			return m, err
		}
		usable := usableRBD(storages.Value)
		if !slices.ContainsFunc(m.Storages, func(s string) bool { return slices.Contains(usable, s) }) {
			return m, model.Invalidf("storages", "%s", fence.NoRBD(m.Storages))
		}
	}
	key := "node"
	if _, listed := s.Get("nodes"); listed {
		key = "nodes"
	}
	for _, n := range m.Nodes {
		if _, err := h.roster.node(n); err != nil {
			return m, model.Invalidf(key, "%s", err)
		}
	}
	return m, nil
}

// RemoveFenceMethod implements api.HAFencing.
func (h *haFencing) RemoveFenceMethod(ctx context.Context, id string) error {
	password := ""
	err := editSections(ctx, h.st, h.fenceEdit("remove fencing method "+id, "", func(f *pveconf.SectionFile) error {
		i := findSection(*f, "", id)
		if i < 0 {
			return noMethod(id)
		}
		password, _ = f.Sections[i].Get("password-file")
		f.Sections = slices.Delete(f.Sections, i, i+1)
		if slices.ContainsFunc(f.Sections, func(s pveconf.Section) bool { p, _ := s.Get("password-file"); return p == password }) {
			password = "" // another one's too
		}
		return nil
	}))
	name, ours := strings.CutPrefix(model.ConfigPrefix+password, fenceSecretKey)
	if err != nil || !ours || name == "" {
		return err // a file elsewhere was not put there for this alone
	}
	if err := h.SetFenceSecret(ctx, name, ""); err != nil {
		return fmt.Errorf("%s is removed, and its password is still in %s: %w", id, password, err)
	}
	return nil
}

// maxSecret is more than any BMC's password.
const maxSecret = 256

// SetFenceSecret implements api.HAFencing.
func (h *haFencing) SetFenceSecret(ctx context.Context, name, secret string) error {
	file, err := secretFile(name, secret)
	if err != nil {
		return err
	}
	return editRecord(ctx, h.st, "change the password priv/fence/"+name, fenceSecretKey+name, func([]byte) ([]byte, error) { return file, nil })
}

// secretFile is the content of the file for a password, nil for none.
func secretFile(name, secret string) ([]byte, error) {
	if !isLabel(name) || name == "" || strings.Trim(name, ".") == "" {
		return nil, model.Invalidf("name", "%q is no name of a password file: use letters, digits, '-', '_' and '.'", name)
	}
	secret = strings.TrimRight(secret, "\r\n")
	switch {
	case len(secret) > maxSecret || strings.ContainsAny(secret, "\r\n"):
		return nil, model.Invalidf("secret", "a password is one line of at most %d characters", maxSecret)
	case secret == "":
		return nil, nil
	}
	return []byte(secret + "\n"), nil
}

// FenceMethods implements api.HAFencing.
func (h *haFencing) FenceMethods(context.Context) ([]api.HAFenceMethod, error) {
	out := []api.HAFenceMethod{}
	for _, n := range h.roster.nodes() {
		of, err := h.methodsOf(n.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, of...)
	}
	return out, nil
}

// methodsOf are a node's methods and how they were tried last.
func (h *haFencing) methodsOf(node string) ([]api.HAFenceMethod, error) {
	said, err := h.drivers.methods(node)
	if err != nil {
		return nil, err
	}
	tried, _ := rehearsalsOf(h.mirror.Snapshot(), node)
	out := make([]api.HAFenceMethod, 0, len(said))
	for _, sd := range said {
		out = append(out, fenceMethod(node, sd.Method, string(sd.Grade), sd.Reason, tried[sd.Method]))
	}
	return out, nil
}

func fenceMethod(node, name, grade, reason string, r corefence.Rehearsal) api.HAFenceMethod {
	return api.HAFenceMethod{
		Method: name, Node: node, Grade: grade, Reason: reason,
		Tried: r.At, Failed: r.Failed, Switched: r.Switched, TookMS: r.Took.Milliseconds(),
	}
}

// FenceTest implements api.HAFencing.
func (h *haFencing) FenceTest(ctx context.Context, node string, switching bool) ([]api.HAFenceMethod, error) {
	if _, err := h.roster.node(node); err != nil {
		return nil, err
	}
	results, err := h.drivers.rehearse(ctx, node, switching)
	if err != nil {
		return nil, err
	}
	h.awaitRehearsals(ctx, node, results)
	return h.methodsOf(node)
}

// awaitRehearsals returns when the mirror shows the results, or does not for a second: the grades are made of them.
func (h *haFencing) awaitRehearsals(ctx context.Context, node string, results []corefence.Rehearsal) {
	for range 100 {
		tried, _ := rehearsalsOf(h.mirror.Snapshot(), node)
		missing := func(r corefence.Rehearsal) bool {
			t := tried[r.Method]
			return t.At < r.At || t.At == r.At && t != r // two rehearsals within a second differ otherwise
		}
		if !slices.ContainsFunc(results, missing) {
			return
		}
		sleep(ctx, 10*time.Millisecond)
	}
}
