package report

import (
	"slices"
	"time"
)

// Run is everything that one run measured. Moments are times since its beginning.
type Run struct {
	Begin  time.Time
	Length time.Duration
	Host   Host
	Nodes  []string // names, in order
	// Parameters are the verdicts, in the order in which they are shown.
	Parameters []Parameter
	// Failures are the steps that went wrong; with one of them the run has failed.
	Failures   []Failure
	Migrations []Migration
	Transfers  []Transfer
	Failovers  []Failover
	Ledger     []LedgerCheck
	Polls      []Poll
	Windows    []Window
	Timeline   []Lane
	Load       []NodeLoad
	// Definitions say exactly what was measured.
	Definitions []Definition
}

// Passed says that every parameter was met and no step failed. A run without parameters has not passed.
func (r *Run) Passed() bool {
	unmet := func(p Parameter) bool { return !p.Pass }
	return len(r.Parameters) > 0 && len(r.Failures) == 0 && !slices.ContainsFunc(r.Parameters, unmet)
}

// Host describes the machine that everything ran on.
type Host struct {
	Name      string  `json:"name"`
	System    string  `json:"system"` // distribution
	Kernel    string  `json:"kernel"`
	CPU       string  `json:"cpu"`
	Cores     int     `json:"cores"`
	MemoryMiB int64   `json:"memory_mib"`
	LoadBegin float64 `json:"load_begin"` // one-minute load average when the run began
	LoadEnd   float64 `json:"load_end"`
	QEMU      string  `json:"qemu"`
	Accel     string  `json:"accel"` // how guests run: kvm or tcg
	Sauh      string  `json:"sauh"`
	Commit    string  `json:"commit"`
	Go        string  `json:"go"`
}

// Parameter is one of the success parameters.
type Parameter struct {
	Name   string `json:"name"`
	Target string `json:"target"`
	// Measured is the figure that stands for the parameter; nil if it could not be measured.
	Measured *float64 `json:"measured"`
	Unit     string   `json:"unit"`
	What     string   `json:"what"` // is measured, in two or three words
	Pass     bool     `json:"pass"`
	Checks   []Check  `json:"checks"` // what the parameter consists of
}

// Check is one condition of a parameter.
type Check struct {
	Name     string   `json:"name"`
	Target   string   `json:"target"`
	Measured *float64 `json:"measured"`
	Unit     string   `json:"unit"`
	Pass     bool     `json:"pass"`
	Note     string   `json:"note,omitempty"`
	// Values are what Measured is the median of, in the order in which they were measured.
	Values []float64 `json:"values,omitempty"`
}

// Failure is a step that went wrong.
type Failure struct {
	At     time.Duration `json:"-"`
	Step   string        `json:"step"`
	Reason string        `json:"reason"`
}

// Migration is a pair of moves, one by Sauh and one by hand, made one after the other.
type Migration struct {
	Sauh Move
	Hand Move
}

// Move is one live migration of one guest. The zero Move was not made.
type Move struct {
	From, To   string
	Begin, End time.Duration
	// Gap is the longest gap of the echo over the move and GapAt the moment it began.
	Gap, GapAt time.Duration
	Sent, Lost int           // echoes sent during the move, and those never answered
	Downtime   time.Duration // as the source's QEMU counts: from the stop until it has sent everything
	Err        string        // why it failed
	Echo       []Echo
}

// Made says that the move was made and went well.
func (m Move) Made() bool { return m.End > 0 && m.Err == "" }

// Total is how long the move took.
func (m Move) Total() time.Duration { return m.End - m.Begin }

// Echo is one echo: when it was sent, and after which time it was answered (negative: never).
type Echo struct {
	At, Trip time.Duration
}

// Transfer is what one stream or one download came to.
type Transfer struct {
	Kind       string // "stream", "download"
	Guest      string
	Begin, End time.Duration
	Bytes      int64
	Stall      time.Duration // the longest time without a byte
	OK         bool          // unbroken, with the right content
	Reason     string        // why not
}

// Lasted is the time from begin to end.
func (t Transfer) Lasted() time.Duration { return t.End - t.Begin }

// Failover is a power cut of a node that runs a guest. Moments are 0 if they did not come.
type Failover struct {
	Kind  string // "worker", "manager and leader"
	Node  string
	To    string // where the guest was started
	Guest string
	Roles string // what the node was when it was cut, for a person
	// Cut, Fenced (as seen by polling), Started (QEMU's process), Answered (the first echo), PowerOn, Member.
	Cut, Fenced, Started, Answered, PowerOn, Member time.Duration
	// StartLimit and AnswerLimit are the targets, counted from the cut; 0 has none.
	StartLimit, AnswerLimit time.Duration
	Echo                    []Echo
	Bystanders              []Bystander
}

// ToStart is the time from the cut until QEMU was started elsewhere; false if it was not.
func (f Failover) ToStart() (time.Duration, bool) { return f.Started - f.Cut, f.Started > 0 }

// ToAnswer is the time from the cut until the guest answered; false if it did not.
func (f Failover) ToAnswer() (time.Duration, bool) { return f.Answered - f.Cut, f.Answered > 0 }

// Bystander is a guest of another node during a failover.
type Bystander struct {
	Guest string
	Node  string
	Gap   time.Duration // longest gap of its echo
}

// LedgerCheck is one comparison of a guest's ledger with what its client was told.
type LedgerCheck struct {
	At           time.Duration
	Guest        string
	After        string // what had happened
	Acknowledged int
	Lost         int
	Wrong        int // another content, written twice, or a broken chain
	Unknown      int // not acknowledged and there: allowed
	Err          string
}

// OK says that nothing is missing or wrong.
func (c LedgerCheck) OK() bool { return c.Err == "" && c.Lost == 0 && c.Wrong == 0 }

// Poll is one question to a node whether it is quorate.
type Poll struct {
	Node    string
	At      time.Duration
	Quorate bool
	InFault bool   // it overlaps a Window
	Reason  string // why not quorate
}

// Window is a time in which a fault was made and repaired.
type Window struct {
	From, To time.Duration
	Label    string
}

// Lane is one row of the timeline.
type Lane struct {
	Name  string
	Spans []Span
}

// Span is a part of a lane. Kind is a node's name (where a guest was), or
// "step", "on", "off", "move", "gone".
type Span struct {
	From, To time.Duration
	Kind     string
	Label    string
}

// NodeLoad is a node's use of the machine over the run.
type NodeLoad struct {
	Node    string
	Samples []LoadSample
}

// LoadSample is what a node's processes used: cores over the time since the sample before, and memory.
type LoadSample struct {
	At         time.Duration
	SauhCPU    float64 // cores, of all processes but QEMU
	GuestCPU   float64 // cores, of QEMU
	SauhBytes  int64   // resident
	GuestBytes int64
}

// Definition explains a term.
type Definition struct {
	Term, Text string
}
