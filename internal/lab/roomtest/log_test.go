//go:build room

package roomtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// entry is one line of a unit's log.
type entry struct {
	at   time.Time
	text string
}

// initUnit is the log of a node's init, which says when it started and lost units.
const initUnit = "init"

var (
	logTime  = regexp.MustCompile(`time=(\S+)`)
	initTime = regexp.MustCompile(`^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6}) `)
)

// parseTime finds the time in a line of either form.
func parseTime(line string) (time.Time, bool) {
	if m := logTime.FindStringSubmatch(line); m != nil {
		at, err := time.Parse(time.RFC3339Nano, m[1])
		return at, err == nil
	}
	if m := initTime.FindStringSubmatch(line); m != nil {
		at, err := time.ParseInLocation("2006/01/02 15:04:05.000000", m[1], time.Local)
		return at, err == nil
	}
	return time.Time{}, false
}

// Log returns what a unit has logged since the moment given.
func (r *room) LogOf(node, unit string, since time.Time) []entry {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.Log(node), unit+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []entry
	for line := range strings.Lines(string(text)) {
		at, ok := parseTime(line)
		if ok && !at.Before(since.Truncate(time.Millisecond)) {
			out = append(out, entry{at, strings.TrimSpace(line)})
		}
	}
	return out
}

// first returns the first entry that has all words.
func first(log []entry, words ...string) (entry, bool) {
	for _, e := range log {
		if all(e.text, words) {
			return e, true
		}
	}
	return entry{}, false
}

func all(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// Logged waits until a unit has logged a line with all words since the moment given, and returns when it did.
func (r *room) Logged(node, unit string, since time.Time, words ...string) time.Time {
	r.t.Helper()
	var e entry
	r.Eventually(fmt.Sprintf("%s of %s logs %q", unit, node, words), patience, func() (err error) {
		var ok bool
		if e, ok = first(r.LogOf(node, unit, since), words...); !ok {
			err = errors.New("it has not")
		}
		return err
	})
	return e.at
}

// NeverLogged demands that a unit logged no line with all words since the moment given.
func (r *room) NeverLogged(node, unit string, since time.Time, words ...string) {
	r.t.Helper()
	if e, ok := first(r.LogOf(node, unit, since), words...); ok {
		r.t.Errorf("%s of %s logged: %s", unit, node, e.text)
	}
}
