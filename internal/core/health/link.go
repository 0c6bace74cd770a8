package health

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bridge is what was seen of a guests' bridge.
type Bridge struct {
	// There: it exists. Up: it is switched on.
	There, Up bool
	// Cards are its ports that lead out of the machine; those of guests are none.
	Cards []Card
}

// Card is a port of a bridge that leads out.
type Card struct {
	Name string
	// Carries: it is switched on, has a carrier, and lets traffic pass.
	Carries bool
	// State is the kernel's word for its state, "lower-layer-down".
	State string
}

// Link is the way out of a guests' bridge. It is not safe for concurrent use. Make it with [NewLink].
type Link struct {
	p       Params
	passed  passed
	hadCard bool          // a bridge that never had one has no link to lose
	other   bool          // what is seen is other than the verdict
	since   time.Duration // for so long without a break
	verdict Verdict
}

// NewLink is one that counts as up.
func NewLink(p Params) *Link { return &Link{p: p} }

// Look takes in what was seen at now and returns what is thought. It must be called at least each Tick.
func (l *Link) Look(now time.Time, b Bridge) Verdict {
	d := l.passed.step(now, l.p.Tick)
	l.hadCard = l.hadCard || len(b.Cards) > 0
	reason := l.complaint(b)
	switch {
	case (reason != "") == l.verdict.Lost:
		l.other = false
	case !l.other:
		l.other, l.since = true, 0
	default:
		l.since += d
	}
	switch {
	case !l.other:
	case reason != "" && l.since >= l.p.LinkDown:
		l.verdict, l.other = Verdict{true, reason}, false
	case reason == "" && l.since >= l.p.LinkUp:
		l.verdict, l.other = Verdict{}, false
	}
	return l.verdict
}

// complaint is why nothing gets out of the bridge, "" if something may.
func (l *Link) complaint(b Bridge) string {
	switch {
	case !b.There:
		return "the bridge is not there"
	case !b.Up:
		return "the bridge is switched off"
	case len(b.Cards) == 0 && l.hadCard:
		return "the bridge has lost its network card"
	case len(b.Cards) == 0 || slices.ContainsFunc(b.Cards, func(c Card) bool { return c.Carries }):
		return ""
	}
	var cards []string
	for _, c := range b.Cards {
		cards = append(cards, fmt.Sprintf("%s is %s", c.Name, c.State))
	}
	return "no network card has a link: " + strings.Join(cards, ", ")
}
