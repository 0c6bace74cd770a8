package beacon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	core "sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// Alarm is a double run, as this node saw it. Its durations are on the clock of the boot that raised it.
type Alarm struct {
	core.Alarm
	// Observer is the node that raised it, At when, for people.
	Observer string    `json:"observer"`
	At       time.Time `json:"at"`
}

// Alarms returns those that nobody acknowledged, with the newest evidence.
func (b *Beacon) Alarms() []Alarm {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.alarms()
}

// alarms is Alarms; b.mu is held.
func (b *Beacon) alarms() []Alarm {
	var out []Alarm
	for _, a := range b.detector.Alarms() {
		out = append(out, Alarm{Alarm: a, Observer: b.cfg.Node, At: b.at[a.ID]})
	}
	return out
}

// Acknowledge ends an alarm: a person has seen it. If the guest goes on running twice, another is raised within seconds. Errors:
// model.ErrNotFound, and that the file cannot be written; then the alarm stays.
func (b *Beacon) Acknowledge(id string) error {
	b.saving.Lock()
	defer b.saving.Unlock()
	all := b.Alarms()
	rest := slices.DeleteFunc(slices.Clone(all), func(a Alarm) bool { return a.ID == id })
	if len(rest) == len(all) {
		return model.Errorf(model.ErrNotFound, "alarm %q does not exist on %s, or was acknowledged before", id, b.cfg.Node)
	}
	if err := saveAlarms(b.file, rest); err != nil {
		return fmt.Errorf("acknowledge alarm %s: %w", id, err)
	}
	b.mu.Lock()
	b.detector.Step(sys.BootTime(), core.Acknowledge{ID: id})
	delete(b.at, id)
	b.mu.Unlock()
	b.cfg.Log.Warn("double run acknowledged", "alarm", id)
	return nil
}

// Found raises the alarm that this node came upon a QEMU that runs a guest of another's; the caller ends it.
func (b *Beacon) Found(f core.Found) {
	b.mu.Lock()
	raised := b.detector.Step(sys.BootTime(), f)
	b.mu.Unlock()
	b.raise(raised)
}

// raise keeps new alarms and tells of them.
func (b *Beacon) raise(raised []core.Alarm) {
	if len(raised) == 0 {
		return
	}
	now := time.Now()
	b.mu.Lock()
	for _, a := range raised {
		b.at[a.ID] = now
	}
	b.mu.Unlock()
	b.save()
	for _, a := range raised {
		b.tell(Alarm{Alarm: a, Observer: b.cfg.Node, At: now})
	}
}

func (b *Beacon) tell(a Alarm) {
	b.cfg.Log.Error("DOUBLE RUN: "+a.String(), "alarm", a.ID, "vmid", int(a.VMID))
	if b.cfg.OnAlarm != nil {
		b.cfg.OnAlarm(a)
	}
}

// save writes the file; if that is not possible, the alarms are in memory and saveAgain tries.
func (b *Beacon) save() {
	b.saving.Lock()
	defer b.saving.Unlock()
	err := saveAlarms(b.file, b.Alarms())
	if err != nil {
		b.cfg.Log.Error("a double run is only known until this agent ends", "err", err)
	}
	b.mu.Lock()
	b.unsaved = err != nil
	b.mu.Unlock()
}

func (b *Beacon) saveAgain() {
	b.mu.Lock()
	unsaved := b.unsaved
	b.mu.Unlock()
	if unsaved {
		b.save()
	}
}

func loadAlarms(file string) ([]Alarm, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read alarms: %w", err)
	}
	var alarms []Alarm
	if err := json.Unmarshal(data, &alarms); err != nil {
		return nil, fmt.Errorf("read alarms: %s: %w: read it yourself, then move it away", file, err)
	}
	return alarms, nil
}

// saveAlarms replaces the file so that after a crash it is either the old or the new one.
func saveAlarms(file string, alarms []Alarm) error {
	data, err := json.MarshalIndent(alarms, "", "  ")
	if err != nil {
		return fmt.Errorf("encode alarms: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("write alarms: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".double-runs-*")
	if err != nil {
		return fmt.Errorf("write alarms: %w", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone when the rename succeeded
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write alarms %s: %w", file, err)
	}
	return nil
}
