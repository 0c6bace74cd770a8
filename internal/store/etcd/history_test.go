package etcd

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// asked is an operation on one key, as a client asked for it.
type asked struct {
	Key  string
	Read bool
	// A write holds if the key's last revision is Expect, 0 for a key that must not exist. Value "" deletes. Values are unique.
	Expect int64
	Value  string
}

func (a asked) String() string {
	switch {
	case a.Read:
		return "get " + a.Key
	case a.Value == "":
		return fmt.Sprintf("delete %s at %d", a.Key, a.Expect)
	}
	return fmt.Sprintf("put %s=%s at %d", a.Key, a.Value, a.Expect)
}

// answered is what came of it.
type answered struct {
	// Unknown: it may or may not have happened, and may happen yet.
	Unknown bool
	// Conflict: the compare did not hold.
	Conflict bool
	// Value and Revision are what a read found, "" and 0 for no key; Revision is a committed write's.
	Value    string
	Revision int64
}

// cell is the state of a key.
type cell struct {
	value    string
	revision int64 // 0 for no key
}

// history is what all clients saw.
type history []porcupine.Operation

// forever is the return of what nobody knows the end of.
const forever = math.MaxInt64

// settled makes a history that can be checked quickly. A write of unknown outcome whose value was read did happen, at the revision that
// was read. One whose value nobody read had no effect that anybody saw: what overwrites it compares its revision, which only a read can tell,
// and each key is read when all is over. A read of unknown outcome says nothing. Deletions of unknown outcome stay.
func (h history) settled() history {
	read := map[string]int64{}
	for _, op := range h {
		in, out := op.Input.(asked), op.Output.(answered)
		if in.Read && !out.Unknown && out.Value != "" {
			read[out.Value] = out.Revision
		}
	}
	var s history
	for _, op := range h {
		in, out := op.Input.(asked), op.Output.(answered)
		revision, happened := read[in.Value]
		switch {
		case !out.Unknown:
		case in.Read, in.Value != "" && !happened:
			continue
		case in.Value != "":
			op.Output, op.Return = answered{Revision: revision}, forever
		default:
			op.Return = forever
		}
		s = append(s, op)
	}
	return s
}

// register is one key under compare-and-swap.
func register() porcupine.Model {
	return porcupine.Model{
		Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
			at := map[string]int{}
			var parts [][]porcupine.Operation
			for _, op := range h {
				key := op.Input.(asked).Key
				if _, ok := at[key]; !ok {
					at[key], parts = len(parts), append(parts, nil)
				}
				parts[at[key]] = append(parts[at[key]], op)
			}
			return parts
		},
		Init: func() any { return cell{} },
		Step: func(state, input, output any) (bool, any) {
			ok, next := state.(cell).step(input.(asked), output.(answered))
			return ok, next
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%s: %+v", input, output) },
	}
}

// step says whether the answer is right in this state, and what the state is then.
func (c cell) step(in asked, out answered) (bool, cell) {
	holds := in.Expect == c.revision
	switch {
	case in.Read:
		return out.Value == c.value && out.Revision == c.revision, c
	case out.Unknown: // a deletion
		if holds {
			c = cell{}
		}
		return true, c
	case out.Conflict:
		return !holds, c
	case in.Value == "":
		return holds, cell{}
	default:
		return holds && out.Revision > c.revision, cell{in.Value, out.Revision}
	}
}

// check says whether the history is linearizable, key by key.
func (h history) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(register(), h.settled(), 10*time.Second)
}

// op is an operation of a history that a test tells.
func op(from, to int64, in asked, out answered) porcupine.Operation {
	return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
}

func TestTheCheckerTellsALinearizableHistoryFromOneThatIsNot(t *testing.T) {
	put := func(value string, expect int64) asked { return asked{Key: "k", Value: value, Expect: expect} }
	get, del := asked{Key: "k", Read: true}, func(expect int64) asked { return asked{Key: "k", Expect: expect} }
	at := func(value string, revision int64) answered { return answered{Value: value, Revision: revision} }
	done := func(revision int64) answered { return answered{Revision: revision} }
	two := history{op(0, 10, put("a", 0), done(5)), op(20, 30, put("b", 5), done(6))}
	unknown := answered{Unknown: true}
	for name, c := range map[string]struct {
		more history
		want porcupine.CheckResult
	}{
		"the last value is read":                  {history{op(40, 50, get, at("b", 6))}, porcupine.Ok},
		"a stale read":                            {history{op(40, 50, get, at("a", 5))}, porcupine.Illegal},
		"the value before, read meanwhile":        {history{op(15, 25, get, at("a", 5))}, porcupine.Ok},
		"a committed write is lost":               {history{op(40, 50, get, at("", 0))}, porcupine.Illegal},
		"a value that nobody wrote":               {history{op(40, 50, get, at("c", 7))}, porcupine.Illegal},
		"two writes on one revision":              {history{op(40, 50, put("c", 5), done(7))}, porcupine.Illegal},
		"a conflict where there is none":          {history{op(40, 50, put("c", 6), answered{Conflict: true})}, porcupine.Illegal},
		"a conflict":                              {history{op(40, 50, put("c", 5), answered{Conflict: true})}, porcupine.Ok},
		"a revision that falls":                   {history{op(40, 50, put("c", 6), done(4))}, porcupine.Illegal},
		"a write of unknown outcome happened":     {history{op(40, 50, put("c", 6), unknown), op(90, 99, get, at("c", 9))}, porcupine.Ok},
		"it happened late":                        {history{op(40, 50, put("c", 6), unknown), op(60, 70, get, at("b", 6)), op(90, 99, get, at("c", 9))}, porcupine.Ok},
		"it did not happen":                       {history{op(40, 50, put("c", 6), unknown), op(90, 99, get, at("b", 6))}, porcupine.Ok},
		"it happened before it was asked for":     {history{op(32, 35, get, at("c", 9)), op(40, 50, put("c", 6), unknown)}, porcupine.Illegal},
		"it happened and is taken back":           {history{op(40, 50, put("c", 6), unknown), op(60, 70, get, at("c", 9)), op(90, 99, get, at("b", 6))}, porcupine.Illegal},
		"a deletion of unknown outcome happened":  {history{op(40, 50, del(6), unknown), op(90, 99, get, at("", 0))}, porcupine.Ok},
		"a deletion of unknown outcome happens":   {history{op(40, 50, del(6), unknown), op(60, 70, get, at("b", 6))}, porcupine.Ok},
		"a deletion happened, and does not count": {history{op(40, 50, del(6), done(7)), op(60, 70, get, at("b", 6))}, porcupine.Illegal},
		"a deletion that came too late happened":  {history{op(40, 50, del(5), unknown), op(60, 70, get, at("", 0))}, porcupine.Illegal},
		"another key's history":                   {history{op(40, 50, asked{Key: "l", Value: "c"}, done(7)), op(60, 70, asked{Key: "l", Read: true}, at("c", 7))}, porcupine.Ok},
	} {
		h := append(append(history{}, two...), c.more...)
		if got := h.check(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
