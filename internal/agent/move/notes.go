package move

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sauh.dev/sauh/internal/core/model"
)

// DirNotes keeps notes as files <vmid>.move in a directory.
type DirNotes struct {
	Dir string
}

func (d DirNotes) file(id model.VMID) string { return filepath.Join(d.Dir, id.String()+".move") }

// Save writes the note so that Load sees the old or the new one, never half of it.
func (d DirNotes) Save(id model.VMID, n Note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("save migration note of guest %s: %w", id, err)
	}
	tmp := d.file(id) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("save migration note of guest %s: %w", id, err)
	}
	if err := os.Rename(tmp, d.file(id)); err != nil {
		return fmt.Errorf("save migration note of guest %s: %w", id, err)
	}
	return nil
}

// Load reads it; model.ErrNotFound.
func (d DirNotes) Load(id model.VMID) (Note, error) {
	b, err := os.ReadFile(d.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return Note{}, model.Errorf(model.ErrNotFound, "guest %s has no migration note", id)
	}
	if err != nil {
		return Note{}, fmt.Errorf("load migration note of guest %s: %w", id, err)
	}
	var n Note
	if err := json.Unmarshal(b, &n); err != nil {
		return Note{}, fmt.Errorf("load migration note of guest %s: %w", id, err)
	}
	return n, nil
}

// Remove forgets it.
func (d DirNotes) Remove(id model.VMID) error {
	if err := os.Remove(d.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove migration note of guest %s: %w", id, err)
	}
	return nil
}
