package pveconf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// HAState is the state that a person asked for an HA resource.
type HAState string

// The states of ha/resources.cfg. "enabled" is read as started.
const (
	HAStarted  HAState = "started"  // runs; restarted in place, and elsewhere when its node is lost
	HAStopped  HAState = "stopped"  // does not run; moves when its node is lost, so that it can be started
	HADisabled HAState = "disabled" // does not run and does not move
	HAIgnored  HAState = "ignored"  // as if it were no HA resource
)

// HAResource is one section of ha/resources.cfg.
type HAResource struct {
	Type string // "vm", "ct"; any other word of lower-case letters is read too
	ID   string // as it stands in the file, "100"
	VMID model.VMID
	// State is what was asked for; a section without one means started.
	State HAState
	// MaxRestart and MaxRelocate count tries on one node and on other nodes; both are 1 where the file says nothing.
	MaxRestart, MaxRelocate int
	// Failback is true where the file says nothing.
	Failback bool
	// AutoRebalance lets the automatic balancing move it; true where the file says nothing.
	AutoRebalance bool
	// Group is a section of ha/groups.cfg, the form that preceded rules; see [GroupsToRules].
	Group   string
	Comment string
	// Order: of several that start at the same time the lower one goes first, 1 to 9999; 0 is the last. Beyond Proxmox VE, as the two below.
	Order int
	// After is what must run before it starts.
	After []HAAfter
	// ResetOn are the sicknesses that reset the guest: panicked, silent.
	ResetOn []string
	// Unsupported says why Sauh cannot take care of it, "" if it can. Such a section is kept as it is.
	Unsupported string
	// Section is where it came from; it keeps order, comments and unknown keys.
	Section Section
}

// HAAfter is a guest that must run before another one starts: its guest agent must have answered, or it must have run for
// Delay.
type HAAfter struct {
	VMID    model.VMID
	Answers bool
	Delay   time.Duration // whole seconds; 0 if Answers
}

// String is the form of the file: "vm:100:agent", "vm:100:30", or "vm:100" for no delay.
func (a HAAfter) String() string {
	switch {
	case a.Answers:
		return a.VMID.SID() + ":agent"
	case a.Delay > 0:
		return a.VMID.SID() + ":" + strconv.Itoa(int(a.Delay/time.Second))
	}
	return a.VMID.SID()
}

// SID is the resource's name, "vm:100".
func (r HAResource) SID() string { return r.Type + ":" + r.ID }

// ParseSID reads the name of an HA resource, "vm:100" or, as Proxmox VE allows, "100".
func ParseSID(sid string) (model.VMID, error) {
	id, err := model.ParseVMID(strings.TrimPrefix(sid, "vm:"))
	if err != nil {
		return 0, model.Invalidf("sid", "%q is no HA resource: use vm:<guest id>, such as vm:100", sid)
	}
	return id, nil
}

// NewHAResource is a resource as `ha add` makes it.
func NewHAResource(id model.VMID, state HAState) HAResource {
	return HAResource{Type: "vm", ID: id.String(), VMID: id, State: state, MaxRestart: 1, MaxRelocate: 1, Failback: true, AutoRebalance: true}
}

// ParseHAResources reads ha/resources.cfg. Resources of another type than vm are read as well, and
// have Unsupported set; what is wrong is an *model.InvalidError with its line.
func ParseHAResources(text []byte) ([]HAResource, error) {
	f, err := ParseSections(text)
	if err != nil {
		return nil, err
	}
	var out []HAResource
	for _, s := range f.Sections {
		r, err := HAResourceFromSection(s)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// HAResourceFromSection reads one section of ha/resources.cfg; errors as ParseHAResources.
func HAResourceFromSection(s Section) (HAResource, error) {
	r := HAResource{Type: s.Type, ID: s.ID, Section: s}
	var err error
	if r.VMID, err = model.ParseVMID(s.ID); err != nil {
		return HAResource{}, invalidLine(s.Line, s.Type, "%q is not a guest id: use a number from %d to %d", s.ID, model.MinVMID, model.MaxVMID)
	}
	if s.Type != "vm" {
		r.Unsupported = fmt.Sprintf("resource type %q is not supported by this version: only vm is", s.Type)
	}
	if !haSID.MatchString(r.SID()) {
		return HAResource{}, invalidLine(s.Line, "type", "%q is no type of HA resource: use lower-case letters, such as vm", s.Type)
	}
	if r.State, err = haState(s); err != nil {
		return HAResource{}, err
	}
	if r.MaxRestart, err = s.count("max_restart"); err != nil {
		return HAResource{}, err
	}
	if r.MaxRelocate, err = s.count("max_relocate"); err != nil {
		return HAResource{}, err
	}
	if r.Failback, err = s.boolean("failback", true); err != nil {
		return HAResource{}, err
	}
	if r.AutoRebalance, err = s.boolean("auto-rebalance", true); err != nil {
		return HAResource{}, err
	}
	if r.Group, _ = s.Get("group"); r.Group != "" && !configID.MatchString(r.Group) {
		return HAResource{}, s.invalid("group", "%q is no name of a group: use at least two letters, digits, '-' and '_', a letter first", r.Group)
	}
	r.Comment, _ = s.Get("comment")
	return r, r.readOrder(s)
}

// readOrder reads the keys that Proxmox VE does not have.
func (r *HAResource) readOrder(s Section) error {
	if v, ok := s.Get("order"); ok {
		var err error
		if r.Order, err = strconv.Atoi(v); err != nil || r.Order < 1 || r.Order > maxOrder {
			return s.invalid("order", "%q is not allowed: use 1 to %d; the lower one starts first", v, maxOrder)
		}
	}
	for _, w := range s.list("after") {
		a, ok := parseAfter(w)
		switch {
		case !ok:
			return s.invalid("after", "%q is not allowed: write vm:100 for a guest that must run, vm:100:agent for one whose agent must have answered, "+
				"vm:100:30 for one that must have run for 30 s (at most %d)", w, int(maxAfter/time.Second))
		case a.VMID == r.VMID:
			return s.invalid("after", "%s cannot wait for itself", r.SID())
		case slices.ContainsFunc(r.After, func(o HAAfter) bool { return o.VMID == a.VMID }):
			return s.invalid("after", "%s stands there twice: remove one of the two", a.VMID.SID())
		}
		r.After = append(r.After, a)
	}
	for _, w := range s.list("reset-on") {
		if w != "panicked" && w != "silent" {
			return s.invalid("reset-on", "%q is not allowed: use panicked, silent or both", w)
		}
		r.ResetOn = append(r.ResetOn, w)
	}
	return nil
}

const (
	maxOrder = 9999
	// maxAfter is below the patience with which a guest waits for others.
	maxAfter = 4 * time.Minute
)

func parseAfter(w string) (a HAAfter, ok bool) {
	w = strings.TrimPrefix(w, "vm:")
	id, how, has := strings.Cut(w, ":")
	var err error
	if a.VMID, err = model.ParseVMID(id); err != nil {
		return a, false
	}
	if how == "agent" {
		a.Answers = true
	} else if has {
		n, err := strconv.Atoi(how)
		a.Delay = time.Duration(n) * time.Second
		if err != nil || n < 0 || n > int(maxAfter/time.Second) {
			return a, false
		}
	}
	return a, true
}

func haState(s Section) (HAState, error) {
	v, ok := s.Get("state")
	if !ok || v == "enabled" {
		return HAStarted, nil
	}
	states := []HAState{HAStarted, HAStopped, HADisabled, HAIgnored}
	if !slices.Contains(states, HAState(v)) {
		return "", s.invalid("state", "%q is not allowed: use started, stopped, disabled or ignored", v)
	}
	return HAState(v), nil
}

// count reads a number of tries; 1 where nothing stands, as in Proxmox VE.
func (s Section) count(key string) (int, error) {
	v, ok := s.Get(key)
	if !ok {
		return 1, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0, s.invalid(key, "%q is not a number of tries: use 0 or more", v)
	}
	return n, nil
}

// PrintHAResources writes ha/resources.cfg from the resources' fields; lines whose meaning did not change stay
// as they are. Comments after the last section are dropped: who wants to keep them edits the SectionFile.
func PrintHAResources(resources []HAResource) ([]byte, error) {
	var f SectionFile
	for _, r := range resources {
		s, err := r.section()
		if err != nil {
			return nil, err
		}
		f.Sections = append(f.Sections, s)
	}
	return f.Print()
}

// section writes the fields that differ from those in r.Section back into it, and validates the result.
func (r HAResource) section() (Section, error) {
	s := r.Section
	s.Type, s.ID = r.Type, r.ID
	old := HAResource{AutoRebalance: true}
	if read, err := HAResourceFromSection(s); err == nil {
		old = read
	}
	if r.State != old.State || s.Line == 0 {
		s = s.With("state", string(r.State))
	}
	if r.MaxRestart != old.MaxRestart {
		s = s.With("max_restart", strconv.Itoa(r.MaxRestart))
	}
	if r.MaxRelocate != old.MaxRelocate {
		s = s.With("max_relocate", strconv.Itoa(r.MaxRelocate))
	}
	if r.Failback != old.Failback {
		s = s.With("failback", digit(r.Failback))
	}
	if r.AutoRebalance != old.AutoRebalance {
		s = s.With("auto-rebalance", digit(r.AutoRebalance))
	}
	switch {
	case r.Group == old.Group:
	case r.Group == "":
		s = s.Without("group")
	default:
		s = s.With("group", r.Group)
	}
	switch {
	case r.Comment == old.Comment:
	case r.Comment == "":
		s = s.Without("comment")
	default:
		s = s.With("comment", r.Comment)
	}
	if r.Order != old.Order {
		s = s.withWord("order", number0(r.Order))
	}
	if !slices.Equal(r.After, old.After) {
		words := make([]string, len(r.After))
		for i, a := range r.After {
			words[i] = a.String()
		}
		s = s.withWord("after", strings.Join(words, ","))
	}
	if !slices.Equal(r.ResetOn, old.ResetOn) {
		s = s.withWord("reset-on", strings.Join(r.ResetOn, ","))
	}
	_, err := HAResourceFromSection(s)
	return s, err
}

// withWord sets key, or removes it where the value is "".
func (s Section) withWord(key, value string) Section {
	if value == "" {
		return s.Without(key)
	}
	return s.With(key, value)
}

func number0(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
