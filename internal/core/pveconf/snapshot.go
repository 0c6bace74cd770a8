package pveconf

import (
	"errors"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Snapshot is one section of a guest's tree of snapshots.
type Snapshot struct {
	Name   string
	Parent string    // "" for the first one
	Time   time.Time // when it was made, UTC
	// VMState is the volume with the guest's memory, "" if only its disks were kept.
	VMState string
	// State is "prepare" or "delete" while it is being made or deleted, "" after that.
	State  string
	Config *Guest // as the guest was, with the keys above
}

// Pending are the changes that wait for the guest's next start.
type Pending struct {
	Set    *Guest
	Delete []PendingDelete
}

// PendingDelete is a key that goes at the next start.
type PendingDelete struct {
	Key   string
	Force bool // a disk's volume goes too
}

const pendingSection = "PENDING"

// Snapshots reads the snapshots in the order of the file. What is wrong in one is a *model.InvalidError with the
// file's line; ParseGuest leaves that to who needs it, so that an old snapshot cannot keep a guest from running.
func (g *Guest) Snapshots() ([]Snapshot, error) {
	var out []Snapshot
	for _, s := range g.sections {
		if strings.EqualFold(s.Name, pendingSection) || strings.Contains(s.Name, ":") { // such as [special:cloudinit]
			continue
		}
		conf, err := s.Config()
		if err != nil {
			return nil, err
		}
		out = append(out, Snapshot{
			Name: s.Name, Parent: conf.Parent(), Time: time.Unix(conf.number("snaptime", 0), 0).UTC(),
			VMState: conf.value("vmstate", ""), State: conf.value("snapstate", ""), Config: conf,
		})
	}
	return out, nil
}

// Pending reads the changes that wait; errors as Snapshots.
func (g *Guest) Pending() (Pending, error) {
	i := slices.IndexFunc(g.sections, func(s GuestSection) bool { return strings.EqualFold(s.Name, pendingSection) })
	if i < 0 {
		return Pending{Set: &Guest{}}, nil
	}
	conf, err := g.sections[i].Config()
	if err != nil {
		return Pending{}, err
	}
	p := Pending{Set: conf}
	if at := conf.find("delete"); at >= 0 {
		for _, key := range splitList(conf.lines[at].value) {
			name, force := strings.CutPrefix(key, "!")
			if !Known(name) {
				return Pending{}, &model.InvalidError{Param: "delete", Line: conf.lines[at].number, Msg: quote(name) + " is no key of a guest's configuration"}
			}
			p.Delete = append(p.Delete, PendingDelete{canonical(name), force})
		}
		conf.Delete("delete")
	}
	return p, nil
}

// Config reads the lines of a section as a guest's configuration. Errors name the line of the file.
func (s GuestSection) Config() (*Guest, error) {
	conf := &Guest{}
	for i, raw := range strings.SplitAfter(s.Text, "\n") {
		if err := conf.parseLine(raw, s.line+i+1); err != nil {
			var inv *model.InvalidError
			if errors.As(err, &inv) {
				return nil, &model.InvalidError{Param: "[" + s.Name + "] " + inv.Param, Line: inv.Line, Msg: inv.Msg}
			}
			return nil, err
		}
	}
	return conf, nil
}
