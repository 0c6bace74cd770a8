package sim

import "time"

// link is one direction between two nodes.
type link struct {
	cut   int           // how many faults cut it
	loss  int           // percent of the messages
	extra time.Duration // added to each message's way
}

// The way of a message in a quiet network.
const (
	wayLeast = 80 * time.Microsecond
	wayMost  = 400 * time.Microsecond
)

func (s *sim) link(from, to *node) *link { return &s.links[from.i*len(s.nodes)+to.i] }

// linked reports whether messages get from one node to the other.
func (s *sim) linked(from, to *node) bool {
	return from == to || s.link(from, to).cut == 0 && from.machine.up && to.machine.up
}

// lost reports whether this one message is lost.
func (s *sim) lost(from, to *node) bool {
	if from == to {
		return false
	}
	l := s.link(from, to)
	return l.loss > 0 && s.rng.chance(l.loss)
}

// delay is the way of one message.
func (s *sim) delay(from, to *node) time.Duration {
	if from == to {
		return 30 * time.Microsecond
	}
	d := s.rng.between(wayLeast, wayMost)
	if l := s.link(from, to); l.extra > 0 {
		d += s.rng.between(0, l.extra)
	}
	return d
}

// call asks the agent of another node. serve runs there and answers through its parameter, once; done gets
// the answer here, or ok false when none came within the deadline.
func call[T any](a *agent, to *node, deadline time.Duration, serve func(*agent, func(T)), done func(answer T, ok bool)) {
	s, from := a.s, a.node
	over := false
	s.after(deadline, &from.agentProc, func() {
		if !over {
			over = true
			var none T
			done(none, false)
		}
	})
	if !s.linked(from, to) || s.lost(from, to) {
		return
	}
	s.after(s.delay(from, to), &to.agentProc, func() {
		serve(to.agent, func(answer T) {
			if !s.linked(to, from) || s.lost(to, from) {
				return
			}
			s.after(s.delay(to, from), &from.agentProc, func() {
				if !over {
					over = true
					done(answer, true)
				}
			})
		})
	})
}
