package guard

import (
	"encoding/json"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// The protocol: over a unix socket, each line is one JSON request and gets one
// line with a JSON response, in order.

// maxLine is the longest request in bytes; a group with a dozen pills has about one thousand.
const maxLine = 64 << 10

type request struct {
	Op string `json:"op"` // renew, protect, unprotect, fence, status
	// Epoch is for renew and fence.
	Epoch uint64 `json:"epoch,omitempty"`
	// DeadlineNS is for renew: nanoseconds on CLOCK_BOOTTIME.
	DeadlineNS int64 `json:"deadline_ns,omitempty"`
	// Group is for protect.
	Group *lease.Group `json:"group,omitempty"`
	// Name is for unprotect.
	Name string `json:"name,omitempty"`
	// NotAfterNS is when the caller gives up, on CLOCK_BOOTTIME, 0 for never. A request that is read later is
	// refused: connections have no order, and a late unprotect must not undo a newer protect.
	NotAfterNS int64 `json:"not_after_ns,omitempty"`
}

type response struct {
	OK     bool    `json:"ok"`
	Error  string  `json:"error,omitempty"`
	Kind   string  `json:"kind,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Status is what a guard says of itself.
type Status struct {
	PID int `json:"pid"`
	// Epoch is the newest epoch that the guard heard of.
	Epoch uint64 `json:"epoch"`
	// Leased is false before the first renewal and after a fencing; Left is then 0.
	Leased bool `json:"leased"`
	// LeftMS is the time until the deadline in milliseconds; negative when it passed.
	LeftMS int64               `json:"left_ms"`
	Groups []lease.GroupStatus `json:"groups"`
	// Watchdog is the path of the device, or "none".
	Watchdog string `json:"watchdog"`
	Identity string `json:"identity,omitempty"`
	// TimeoutS is the watchdog's timeout in seconds, 0 until it is armed.
	TimeoutS float64 `json:"timeout_s"`
	// Grade says how far a hung guard is covered: GradeHardware, GradeSoftware or GradeNone.
	Grade string `json:"grade"`
	// WatchdogReset: the device says that it reset the machine before this boot. Not every device remembers.
	WatchdogReset bool `json:"watchdog_reset,omitempty"`
	// Weak lists what the guard should have and has not, as sentences.
	Weak []string `json:"weak,omitempty"`
	// Stopping: the guard was told to stop and does so when the last group is gone.
	Stopping bool `json:"stopping,omitempty"`
	// Resetting is why the machine is being reset.
	Resetting string `json:"resetting,omitempty"`
}

// Grades of a watchdog.
const (
	GradeHardware = "hardware" // a device of its own
	GradeSoftware = "software" // a timer of the kernel: covers a hung guard, not a hung kernel
	GradeNone     = "none"     // a guard that hangs protects nothing
)

// Frozen lists the groups that are frozen or about to be.
func (s Status) Frozen() []string {
	var names []string
	for _, g := range s.Groups {
		if g.State == lease.Frozen || g.State == lease.Freezing {
			names = append(names, g.Name)
		}
	}
	return names
}

func refuse(err error) response { return response{Error: err.Error(), Kind: model.KindOf(err)} }

func (r response) err() error {
	if r.OK {
		return nil
	}
	return model.FromKind(r.Kind, r.Error)
}

// parseRequest reads one line.
func parseRequest(line []byte) (request, error) {
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		return request{}, model.Invalidf("request", "not a JSON object of the guard's protocol: %v", err)
	}
	switch req.Op {
	case "renew", "fence", "status":
	case "protect":
		if req.Group == nil {
			return request{}, model.Invalidf("group", "protect needs a group")
		}
	case "unprotect":
		if req.Name == "" {
			return request{}, model.Invalidf("name", "unprotect needs the name of a group")
		}
	default:
		return request{}, model.Invalidf("op", "%q is unknown: use renew, protect, unprotect, fence or status", req.Op)
	}
	return req, nil
}

func (r request) deadline() time.Duration { return time.Duration(r.DeadlineNS) }
