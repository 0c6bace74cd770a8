//go:build room

package roomtest

import (
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

var logTime = regexp.MustCompile(`time=(\S+)`)

// Log returns what a unit has logged since the moment given.
func (r *room) LogOf(node, unit string, since time.Time) []entry {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.Log(node), unit+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []entry
	for line := range strings.Lines(string(text)) {
		m := logTime.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err == nil && !at.Before(since.Truncate(time.Millisecond)) {
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

// Logged returns when a unit first logged a line with all words since the moment given; it has to be there.
func (r *room) Logged(node, unit string, since time.Time, words ...string) time.Time {
	r.t.Helper()
	e, ok := first(r.LogOf(node, unit, since), words...)
	if !ok {
		r.t.Fatalf("%s of %s has not logged %q since %s", unit, node, words, since.Format("15:04:05.000"))
	}
	return e.at
}

// NeverLogged demands that a unit logged no line with all words since the moment given.
func (r *room) NeverLogged(node, unit string, since time.Time, words ...string) {
	r.t.Helper()
	if e, ok := first(r.LogOf(node, unit, since), words...); ok {
		r.t.Errorf("%s of %s logged: %s", unit, node, e.text)
	}
}
