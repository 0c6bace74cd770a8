package fence

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Why evidence is no proof. Errors of [Judge] and of the drivers are one of these, or
// the driver's own failure to reach its device.
var (
	// ErrNotOff: the node has power, or the device does not say.
	ErrNotOff = errors.New("the node is not off")
	// ErrNotVerified: "off" was read once, or twice without the gap between.
	ErrNotVerified = errors.New("off was not read twice")
	// ErrStranger: the device belongs to another machine.
	ErrStranger = errors.New("the BMC belongs to another machine")
	// ErrUnidentified: nobody can say whose device it is.
	ErrUnidentified = errors.New("the BMC cannot be identified")
	// ErrRehearsalFailed: the method's last rehearsal failed, or one that it needs was never made.
	ErrRehearsalFailed = errors.New("the method is not rehearsed")
	// ErrAlive: something was heard of the node after the evidence.
	ErrAlive = errors.New("the node was heard of afterwards")
	// ErrNotCovered: the method can prove nothing about any guest of the node.
	ErrNotCovered = errors.New("no guest is covered")
)

// Kind says what a method does.
type Kind string

// Power switches the machine off; Storage has the storage refuse the machine.
const (
	Power   Kind = "power"
	Storage Kind = "storage"
)

// PowerState is a machine's power as its BMC tells it.
type PowerState string

// Unknown is every answer that is neither on nor off, "powering off" too.
const (
	Unknown PowerState = "unknown"
	On      PowerState = "on"
	Off     PowerState = "off"
)

// Reading is one answer of a BMC.
type Reading struct {
	Power PowerState `json:"power"`
	// UUID is the system UUID that the BMC names, "" if it names none.
	UUID string `json:"uuid,omitempty"`
	// Asked is when the question was sent, Answered when the answer was there.
	Asked    time.Duration `json:"asked_ns"`
	Answered time.Duration `json:"answered_ns"`
}

// Refusal is what a storage was seen to refuse: the proof of the Storage kind.
type Refusal struct {
	// At is when the entries were seen in the storage's list.
	At time.Duration `json:"at_ns"`
	// Guests are those that the refusal covers.
	Guests []model.VMID `json:"guests"`
}

// Method is what the judgement has to know about a configured method.
type Method struct {
	Name string `json:"name"` // its section, "redfish: n2-bmc"
	Node string `json:"node"`
	Kind Kind   `json:"kind"`
	// UUID is the system UUID that the BMC must name, "" if none is known.
	UUID string `json:"uuid,omitempty"`
	// AnyUUID: a person said that this BMC cannot be identified and is to be trusted once it was rehearsed by switching.
	AnyUUID bool `json:"any_uuid,omitempty"`
	// Gap is for how long off must last as a person asked for it, 0 for none; see OffFor.
	Gap time.Duration `json:"gap_ns"`
	// Digest names the configuration, so that a rehearsal of another one does not count.
	Digest string `json:"digest"`
	// Rehearsal is the last one; the zero value for none.
	Rehearsal Rehearsal `json:"rehearsal"`
	// Useless says why the method can prove nothing in this cluster, "" if it can.
	Useless string `json:"useless,omitempty"`
}

// Rehearsal is how a method was tried. It is kept as JSON.
type Rehearsal struct {
	Method string `json:"method"`
	Digest string `json:"digest"`
	At     int64  `json:"at"` // Unix seconds; 0 if there was none
	// Switched: the node really was switched off, rather than only asked about, and stayed silent.
	Switched bool `json:"switched,omitempty"`
	// Refuted: one by switching failed after the order. What only asks cannot tell whether that is mended, so this stays until one by
	// switching passes; Failed is set.
	Refuted bool `json:"refuted,omitempty"`
	// Failed is why it failed, "" if it did not.
	Failed string `json:"failed,omitempty"`
	// Early is how long after the first "off" the node was still heard of.
	Early time.Duration `json:"early_ns,omitempty"`
	// Took is how long the method needed for its proof, or for its answer.
	Took time.Duration `json:"took_ns,omitempty"`
}

// Grade says how much a method is worth, for people.
type Grade string

// Grades, best first. The last proves nothing.
const (
	Rehearsed    Grade = "rehearsed"    // identified, and its last rehearsal passed
	Untried      Grade = "untried"      // identified, and never rehearsed as it is configured now
	Unidentified Grade = "unidentified" // trusted by a person's word and a rehearsal that switched
	Worthless    Grade = "worthless"
)

// counts says whether the rehearsal was of this configuration.
func (m Method) counts() bool { return m.Rehearsal.At != 0 && m.Rehearsal.Digest == m.Digest }

// Grade is what the method is worth as it is configured and rehearsed. For a Worthless one the error says why.
func (m Method) Grade() (Grade, error) {
	known := m.Kind == Storage || ValidUUID(m.UUID)
	switch {
	case m.Useless != "":
		return Worthless, fmt.Errorf("%w: %s", ErrNotCovered, m.Useless)
	case m.counts() && m.Rehearsal.Failed != "":
		return Worthless, fmt.Errorf("%w: the last rehearsal failed: %s: %s", ErrRehearsalFailed, m.Rehearsal.Failed, m.remedy())
	case known && m.counts():
		return Rehearsed, nil
	case known:
		return Untried, nil
	case !m.AnyUUID:
		return Worthless, fmt.Errorf("%w: the system UUID of %s is not known: write the one that the BMC names as uuid into ha/fence.cfg", ErrUnidentified, m.Node)
	case m.counts() && m.Rehearsal.Switched:
		return Unidentified, nil
	}
	return Worthless, fmt.Errorf("%w: with uuid any it counts only after a rehearsal that switched %s off", ErrRehearsalFailed, m.Node)
}

// remedy says what makes a method count again whose rehearsal failed.
func (m Method) remedy() string {
	if m.Rehearsal.Refuted {
		return "repair it and rehearse it by switching " + m.Node + " off"
	}
	return "repair it and rehearse it again"
}

// How long off must last where nobody says otherwise. Power supplies hold for some 20 ms, but a BMC may
// say what it was told to do rather than what is. So one that nobody saw switching is given long.
const (
	RehearsedGap = 500 * time.Millisecond // core/ha's Params.Confirm, so that one answer is enough
	UntriedGap   = 2 * time.Second
)

// OffFor is how long off must last to be believed: the gap asked for or a default. A gap shorter than UntriedGap counts only for a method whose
// rehearsal, of either sort, passed: what nobody tried is not believed sooner because somebody wrote so. A rehearsal by switching shortens the
// default, and off must then last for twice the time at least by which the BMC was seen to say off too early.
func (m Method) OffFor() time.Duration {
	rehearsed := m.counts() && m.Rehearsal.Failed == ""
	switched := m.counts() && m.Rehearsal.Switched
	gap := m.Gap
	switch {
	case gap > 0 && !rehearsed:
		gap = max(gap, UntriedGap)
	case gap > 0:
	case switched:
		gap = RehearsedGap
	default:
		gap = UntriedGap
	}
	if switched {
		gap = max(gap, 2*m.Rehearsal.Early)
	}
	return gap
}

// Digest names a configuration's text.
func Digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Evidence is what a method brought back: readings of a BMC in their order, or a refusal.
type Evidence struct {
	Readings []Reading `json:"readings,omitempty"`
	Refusal  *Refusal  `json:"refusal,omitempty"`
}

// SignKind is how a node was heard of.
type SignKind string

// A beacon came by the network, a renewal through the store.
const (
	Beacon  SignKind = "beacon"
	Renewal SignKind = "renewal"
)

// Sign is the last time that something was heard of a node; only the newest of a kind matters.
type Sign struct {
	Kind SignKind      `json:"kind"`
	At   time.Duration `json:"at_ns"` // when it arrived
}

// Proof says that guests of a node cannot write any more.
type Proof struct {
	Node   string `json:"node"`
	Method string `json:"method"`
	Kind   Kind   `json:"kind"`
	Grade  Grade  `json:"grade"`
	// Since is the instant after which nothing may have been heard of the node.
	Since time.Duration `json:"since_ns"`
	// Lasted is how long off was read for, between the first reading and the last.
	Lasted time.Duration `json:"lasted_ns,omitempty"`
	// Guests are those that it covers; nil for all of the node.
	Guests []model.VMID `json:"guests,omitempty"`
}

// Covers says whether a guest of the node may be started elsewhere on this proof.
func (p Proof) Covers(id model.VMID) bool { return p.Kind == Power || slices.Contains(p.Guests, id) }

// VoidedBy says whether a sign of the node contradicts the proof. A machine that is off does not speak; one that the storage
// refuses may well speak. Whoever uses a proof holds it against the newest signs once more.
func (p Proof) VoidedBy(s Sign) bool { return p.Kind == Power && s.At >= p.Since }

// Judge says whether what a method brought back is a proof, given when the node was last heard of. Its errors
// are the sentinels of this package, with the reason.
func Judge(m Method, ev Evidence, signs []Sign) (Proof, error) {
	grade, err := m.Grade()
	if err != nil {
		return Proof{}, err
	}
	p := Proof{Node: m.Node, Method: m.Name, Kind: m.Kind, Grade: grade}
	if m.Kind == Storage {
		err = p.refused(ev.Refusal)
	} else {
		err = p.off(m, ev.Readings)
	}
	if err != nil {
		return Proof{}, err
	}
	for _, s := range signs {
		if p.VoidedBy(s) {
			return Proof{}, fmt.Errorf("%w: a %s of %s arrived %v after it was said to be off", ErrAlive, s.Kind, m.Node, s.At-p.Since)
		}
	}
	return p, nil
}

func (p *Proof) refused(r *Refusal) error {
	if r == nil {
		return fmt.Errorf("%w: the storage still serves %s", ErrNotOff, p.Node)
	}
	if len(r.Guests) == 0 {
		return fmt.Errorf("%w: no guest of %s has all its writable disks there", ErrNotCovered, p.Node)
	}
	p.Since, p.Guests = r.At, slices.Clone(r.Guests)
	return nil
}

// off demands that the newest readings all say off, from the right machine, and that the first and the last of
// them are the gap apart.
func (p *Proof) off(m Method, readings []Reading) error {
	if len(readings) == 0 {
		return fmt.Errorf("%w: nothing was read", ErrNotOff)
	}
	for _, r := range readings {
		if err := m.Identify(r.UUID); err != nil {
			return err
		}
	}
	first := len(readings)
	for first > 0 && readings[first-1].Power == Off {
		first--
	}
	if first == len(readings) {
		return fmt.Errorf("%w: its power is %s", ErrNotOff, readings[len(readings)-1].Power)
	}
	p.Since = readings[first].Asked
	if p.Lasted = readings[len(readings)-1].Asked - readings[first].Answered; p.Lasted < m.OffFor() || first == len(readings)-1 {
		return fmt.Errorf("%w: the second reading must come %v after the first", ErrNotVerified, m.OffFor())
	}
	return nil
}

// Verified says whether the readings need no further one: they end with off, twice, the gap apart.
func Verified(m Method, readings []Reading) bool {
	p := Proof{}
	return p.off(m, readings) == nil
}

// Identify compares the UUID that a BMC names with the node's. nil: it is the node's, or a person said that
// it cannot be told. ErrStranger, ErrUnidentified otherwise.
func (m Method) Identify(uuid string) error {
	switch {
	case m.Kind == Storage || m.AnyUUID && !ValidUUID(m.UUID):
		return nil
	case !ValidUUID(m.UUID) && ValidUUID(uuid):
		return fmt.Errorf("%w: the system UUID of %s is not known, and it names %s: if it is the BMC of %s, set uuid=%s",
			ErrUnidentified, m.Node, uuid, m.Node, uuid)
	case !ValidUUID(m.UUID):
		return fmt.Errorf("%w: the system UUID of %s is not known, and it names none: set uuid=any, which counts after a rehearsal that switches %s off",
			ErrUnidentified, m.Node, m.Node)
	case !ValidUUID(uuid):
		return fmt.Errorf("%w: the BMC names no system UUID, %s has %s", ErrUnidentified, m.Node, m.UUID)
	case !SameSystem(m.UUID, uuid):
		return fmt.Errorf("%w: it names the system UUID %s, %s has %s: compare address and cabling", ErrStranger, uuid, m.Node, m.UUID)
	}
	return nil
}

// Disk is one disk of a guest, as far as fencing by its storage goes.
type Disk struct {
	Storage  string
	Writable bool
	// Image is the RBD image, "pool/name"; "" on another kind of storage.
	Image string
}

// Guest is a guest of a node with its disks.
type Guest struct {
	VMID  model.VMID
	Disks []Disk
}

// Dead says that a node's guests are dead: it killed them, and registered with a newer epoch after that, or it was
// off. Only what that transaction wrote may be made into one.
type Dead struct {
	Node  string
	Epoch uint64
}

// AllOn says whether a guest with these disks can be kept from writing by the storages alone: it has a writable disk,
// and every writable one is on one of them. It is the one meaning of "all writable disks on RBD".
func AllOn(storages []string, disks []Disk) bool {
	writable := 0
	for _, d := range disks {
		if !d.Writable {
			continue
		}
		writable++
		if !slices.Contains(storages, d.Storage) {
			return false
		}
	}
	return writable > 0
}
