package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"sauh.dev/sauh/internal/core/ha"
)

// endNote is what an end of this node has still to do, for an agent that starts while it is under way: an end that was forgotten half way
// would leave a node that serves again, or does not, without anybody having said so. It stands in a directory that a boot empties.
type endNote struct {
	Ends   ha.NodeEnd `json:"ends"`
	BootID string     `json:"boot_id"`
	// Machine: the agent brings the machine down afterwards, not whoever asked.
	Machine bool `json:"machine,omitempty"`
	// Again: an earlier agent began it.
	Again bool `json:"again,omitempty"`
}

// goOn has an end that an agent of this boot has begun and not ended go on, as a new task. Else it deletes what an earlier life said of one.
func (e *ending) goOn() {
	n, err := readEndNote(e.noteFile)
	if err != nil {
		e.log.Error("it is not known whether this node was ending: it serves again, end it anew if it is to end", "err", err)
	}
	if err == nil && n.BootID == e.boot {
		n.Again = true
		_, err := e.begin(n)
		if err == nil {
			e.log.Warn("the agent starts while this node ends: the end goes on", "end", n.Ends, "machine", n.Machine)
			return
		}
		e.log.Error("the end of this node does not go on: it serves again, end it anew if it is to end", "end", n.Ends, "err", err)
	}
	e.mu.Lock()
	e.strike()
	e.mu.Unlock()
	e.wg.Go(e.forget)
}

// keep writes down what is still to be done; e.mu is held. Without the note the end is as good, unless the agent ends meanwhile.
func (e *ending) keep(n endNote) {
	e.todo = n
	if err := saveJSON(e.noteFile, n); err != nil {
		e.log.Error("an agent that starts before this node has ended will not know of the end", "err", err)
	}
}

// strike deletes the note, because nothing is to be done any more; e.mu is held.
func (e *ending) strike() {
	e.todo = endNote{}
	if err := os.Remove(e.noteFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Error("an agent that starts in this boot will end the node again", "err", err)
	}
}

// drained: this node is through with the end by that task. The machine's own end is still to come, if it is the agent's.
func (e *ending) drained(upid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.upid == upid && !e.todo.Machine {
		e.strike()
	}
}

// told: the machine was told to go down after the end by that task.
func (e *ending) told(upid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.upid == upid {
		e.strike()
	}
}

// readEndNote is the note that an earlier agent left, the zero one if there is none.
func readEndNote(file string) (endNote, error) {
	var n endNote
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil {
		return n, fmt.Errorf("read %s: %w", file, err)
	}
	return n, nil
}
