package pveconf_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// corpus returns the files of testdata/guests by name.
func corpus(t testing.TB) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/guests/*.conf")
	if err != nil || len(paths) < 15 {
		t.Fatalf("%d files: %v", len(paths), err)
	}
	files := map[string]string{}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(p), ".conf")] = string(text)
	}
	return files
}

func TestRealFilesArePrintedByteForByte(t *testing.T) {
	for name, text := range corpus(t) {
		g, err := pveconf.ParseGuest([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(text, string(g.Bytes())); diff != "" {
			t.Errorf("%s (-read +printed):\n%s", name, diff)
		}
		if diff := cmp.Diff(text, string(g.Clone().Bytes())); diff != "" {
			t.Errorf("the clone of %s (-read +printed):\n%s", name, diff)
		}
	}
}

// Setting each key to the value that it has changes no byte; a snapshot's lines are checked as the others are.
func TestSettingWhatIsThereChangesNothing(t *testing.T) {
	for name, text := range corpus(t) {
		g := parse(t, text)
		for _, key := range g.Keys() {
			value, _ := g.Get(key)
			if err := g.Set(key, value); err != nil && pveconf.Known(key) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if diff := cmp.Diff(text, string(g.Bytes())); diff != "" {
			t.Errorf("%s (-read +printed):\n%s", name, diff)
		}
		if _, err := g.Snapshots(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := g.Pending(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAChangeTouchesItsLineAlone(t *testing.T) {
	for name, text := range corpus(t) {
		g := parse(t, text)
		had, ok := g.Get("memory")
		if err := g.Set("memory", "777"); err != nil {
			t.Fatal(err)
		}
		var before, after []string
		for line := range strings.Lines(text) {
			before = append(before, strings.TrimRight(line, "\r\n"))
		}
		for line := range strings.Lines(string(g.Bytes())) {
			after = append(after, strings.TrimRight(line, "\r\n"))
		}
		i := slices.Index(after, "memory: 777")
		if i < 0 {
			t.Errorf("%s: the new value is not there:\n%s", name, g.Bytes())
			continue
		}
		rest := slices.Delete(slices.Clone(after), i, i+1)
		if ok && i < len(before) {
			if !strings.Contains(before[i], had) {
				t.Errorf("%s: the line %q became memory", name, before[i])
			}
			before = slices.Delete(before, i, i+1)
		}
		if diff := cmp.Diff(before, rest, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-before +after):\n%s", name, diff)
		}
	}
}

func updating() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if updating() {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// What has no effect is named, of every file.
func TestAStartNamesWhatHasNoEffect(t *testing.T) {
	var b strings.Builder
	files := corpus(t)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range files {
			if !yield(n) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "%s\n", name)
		for _, what := range pveconf.Unsupported(parse(t, files[name])) {
			fmt.Fprintf(&b, "    %s\n", what)
		}
	}
	golden(t, "noeffect.golden", b.String())
}

// testdata/malformed.txt has one wrong line in each line; the golden file says how it is refused, with its number in a
// file whose other lines are right.
func TestMalformedValuesAreRefusedWithWhatIsAllowed(t *testing.T) {
	text, err := os.ReadFile("testdata/malformed.txt")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	n := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		n++
		_, err := pveconf.ParseGuest([]byte("#a guest\nacpi: 1\n" + line + "\n"))
		var invalid *model.InvalidError
		if !errors.As(err, &invalid) || invalid.Line != 3 {
			t.Errorf("%q: %v", line, err)
			continue
		}
		fmt.Fprintf(&b, "%s\n    %v\n", line, err)
		key, value, _ := strings.Cut(line, ": ")
		if _, repeated := strings.CutPrefix(key, "acpi"); pveconf.Known(key) && !repeated {
			if err := (&pveconf.Guest{}).Set(key, value); !errors.Is(err, model.ErrInvalid) {
				t.Errorf("Set takes %q: %v", line, err)
			}
		}
	}
	if n < 60 {
		t.Errorf("only %d lines", n)
	}
	golden(t, "malformed.golden", b.String())
}
