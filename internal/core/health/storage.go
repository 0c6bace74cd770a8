package health

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Storage is one storage as this node sees it. It is not safe for concurrent use. Make it with [NewStorage].
type Storage struct {
	p      Params
	passed passed

	asked    bool          // a probe is under way
	silence  time.Duration // since it was begun, or the first of those that failed before it
	failures int           // probes that failed, one after the other
	failure  string        // the last of them
	good     int           // probes that succeeded, one after the other
	guests   map[string]ioError
	errors   time.Duration // since when guests had errors
	verdict  Verdict
	answered bool // a probe has succeeded
}

type ioError struct {
	age    time.Duration
	reason string
}

// Verdict is what is thought of a storage or a link.
type Verdict struct {
	Lost bool
	// Reason says why it is lost: a part of a sentence, "no answer for 15s". It stays as it was when the storage was lost.
	Reason string
}

// NewStorage is one that nothing is known of; it is not lost.
func NewStorage(p Params) *Storage { return &Storage{p: p, guests: map[string]ioError{}} }

// LostStorage is one that was lost when it was last looked at, by this program or the one before it, and that nothing else is known of.
func LostStorage(p Params) *Storage {
	s := NewStorage(p)
	s.verdict = Verdict{true, "it was lost before, and is not proved to be back"}
	return s
}

// Asked says that a probe was begun.
func (s *Storage) Asked() {
	if s.failures == 0 {
		s.silence = 0
	}
	s.asked = true
}

// Answered says that the probe ended: "" if all went well, or what went wrong.
func (s *Storage) Answered(failure string) {
	s.asked = false
	if failure == "" {
		s.silence, s.failures, s.failure, s.answered = 0, 0, "", true
		s.good++
		return
	}
	s.failures, s.failure, s.good = s.failures+1, failure, 0
}

// GuestError says that a guest had an I/O error on this storage. More of them from the same guest count once, since a
// single broken image is no lost storage. A full storage must not be reported: that is the same on each node.
func (s *Storage) GuestError(guest, reason string) {
	s.guests[guest] = ioError{reason: reason}
}

// Look returns what is thought at now. It must be called at least each Tick.
func (s *Storage) Look(now time.Time) Verdict {
	d := s.passed.step(now, s.p.Tick)
	if s.asked || s.failures > 0 {
		s.silence += d
	}
	if len(s.guests) > 0 {
		s.errors += d
	} else {
		s.errors = 0
	}
	for guest, e := range s.guests {
		if e.age += d; e.age > s.p.ErrorWindow {
			delete(s.guests, guest)
		} else {
			s.guests[guest] = e
		}
	}
	reason := s.complaint()
	switch {
	case !s.verdict.Lost && reason != "":
		s.verdict = Verdict{true, reason}
	case s.verdict.Lost && reason == "" && s.good >= s.p.Good && len(s.guests) == 0:
		s.verdict = Verdict{}
	}
	if reason != "" {
		s.good = 0 // what has been good counts from the last complaint on
	}
	return s.verdict
}

// Doubtful says that the storage is not known to be well as of the last Look: it is lost, or may be on the way there, or nothing was heard of it yet.
func (s *Storage) Doubtful() bool {
	return s.verdict.Lost || !s.answered || s.failures > 0 || s.asked && s.silence >= s.p.ProbeEvery
}

// complaint is why the storage is lost, "" if nothing speaks for that.
func (s *Storage) complaint() string {
	silent := s.silence >= s.p.LostAfter
	if !silent && (s.errors < s.p.LostAfter || s.failures+len(s.guests) < s.p.Errors) {
		return ""
	}
	var parts []string
	switch {
	case silent && s.failures == 0:
		return fmt.Sprintf("no answer for %s", s.p.LostAfter)
	case s.failures == 1:
		parts = append(parts, "a probe failed: "+s.failure)
	case s.failures > 1:
		parts = append(parts, fmt.Sprintf("%d probes in a row failed: %s", s.failures, s.failure))
	}
	if len(s.guests) > 0 {
		names := slices.Sorted(maps.Keys(s.guests))
		parts = append(parts, fmt.Sprintf("I/O errors of guests %s: %s", strings.Join(names, ", "), s.guests[names[0]].reason))
	}
	return strings.Join(parts, "; ")
}
