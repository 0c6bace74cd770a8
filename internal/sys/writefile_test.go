package sys_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sauh.dev/sauh/internal/sys"
)

func TestAFileIsWrittenWholeForItsOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "deep")
	file := filepath.Join(dir, "record")
	for _, want := range []string{"first, which is longer", "second"} {
		must(t, sys.WriteFile(file, []byte(want)))
		got, err := os.ReadFile(file)
		must(t, err)
		info, err := os.Stat(file)
		must(t, err)
		if string(got) != want || info.Mode().Perm() != 0o600 {
			t.Errorf("the file is %q with mode %v", got, info.Mode())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its directory: %v %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("something else is left: %v %v", entries, err)
	}
}

func TestAFileThatCannotBeWrittenLeavesTheOldOne(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "busy")
	must(t, os.MkdirAll(filepath.Join(file, "not-empty"), 0o700)) // a rename onto it fails
	if err := sys.WriteFile(file, []byte("x")); err == nil || !strings.HasPrefix(err.Error(), "write "+file+": ") {
		t.Errorf("answered with %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("something is left: %v %v", entries, err)
	}
}
