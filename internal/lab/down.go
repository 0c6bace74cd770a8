package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sauh.dev/sauh/internal/sys"
)

// killTimeout is far beyond the milliseconds that a kill takes; what is left then hangs in the kernel.
const killTimeout = 30 * time.Second

// Down removes the room of that name: processes, namespaces, cgroups and, unless
// keepData, its directory. It needs no supervisor, so it works after a crash
// too, and it is idempotent. It returns what it removed, one phrase each; a
// directory that holds anything but a room is left alone.
func Down(ctx context.Context, name string, keepData bool) ([]string, error) {
	if err := validateName(name); err != nil {
		return nil, err
	}
	if err := needRoot(); err != nil {
		return nil, err
	}
	p, err := readPointer(name)
	if err != nil {
		return nil, err
	}
	removed, err := removeCgroup(ctx, p.Cgroup)
	if err != nil {
		return removed, fmt.Errorf("stop room %q: %w", name, err)
	}
	more, err := removeDir(p.Dir, keepData)
	removed = append(removed, more...)
	if err != nil {
		return removed, fmt.Errorf("remove room %q: %w", name, err)
	}
	return removed, errors.Join(remove(pointerPath(name)), removeIfEmpty(filepath.Dir(pointerPath(name))))
}

// removeCgroup kills what is in the cgroup. The supervisor is pid 1 of a pid
// namespace and the only holder of the room's other namespaces: with it go
// interfaces and mounts.
func removeCgroup(ctx context.Context, dir string) ([]string, error) {
	if !exists(dir) {
		return nil, nil
	}
	pids, err := sys.CgroupProcesses(dir)
	if err != nil {
		return nil, err
	}
	tree, err := sys.CgroupTree(dir)
	if err != nil {
		return nil, err
	}
	if err := sys.Cgroup(dir).Kill(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := sys.Cgroup(dir).WaitEmpty(ctx); err != nil {
		return nil, err
	}
	if err := sys.Cgroup(dir).Remove(); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%d processes", len(pids)), fmt.Sprintf("%d cgroups under %s", len(tree), dir)}, nil
}

// removeDir removes the entries that a room makes, and the directory if nothing else is in it.
func removeDir(dir string, keepData bool) ([]string, error) {
	if !exists(configPath(dir)) {
		return nil, nil
	}
	names := []string{controlPath(dir), binaryPath(dir), runPath(dir)}
	if !keepData {
		// The mark of a room goes last, so that a Down that was interrupted can be repeated.
		names = append(names, nasPath(dir), nodesPath(dir), bmcPath(dir), logPath(dir), configPath(dir))
	}
	for _, name := range names {
		if err := os.RemoveAll(name); err != nil {
			return nil, err
		}
	}
	if keepData {
		return nil, nil
	}
	if err := removeIfEmpty(dir); err != nil {
		return nil, err
	}
	removed := []string{dir}
	if filepath.Dir(dir) == StateRoot {
		return removed, removeIfEmpty(StateRoot)
	}
	return removed, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeIfEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) > 0 {
		return nil
	} else if err != nil {
		return err
	}
	return remove(dir)
}
