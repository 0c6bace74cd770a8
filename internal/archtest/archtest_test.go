// Package archtest checks the architecture: who imports whom, and that every
// package says what it is. It has no code of its own.
package archtest

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "sauh.dev/sauh/"

type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Deps       []string
	Imports    []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps=false", "-json=ImportPath,Dir,GoFiles,Deps,Imports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			ps = append(ps, p)
		}
	}
}

func inside(pkg string, dirs ...string) bool {
	for _, d := range dirs {
		if p := module + d; pkg == p || strings.HasPrefix(pkg, p+"/") {
			return true
		}
	}
	return false
}

// The rungs: core thinks ← drivers do one thing ← agent connects ← cli and lab use it.
func TestImportsPointDown(t *testing.T) {
	drivers := []string{
		"internal/store", "internal/guard", "internal/fence", "internal/qmp", "internal/qemu", "internal/storage",
		"internal/replicate", "internal/network", "internal/configfs", "internal/certs", "internal/sys",
	}
	above := []string{"internal/agent", "internal/api", "internal/client", "internal/cli", "internal/lab", "internal/sim", "cmd"}
	for _, p := range list(t) {
		for _, dep := range p.Deps {
			switch {
			case inside(p.ImportPath, "internal/core") && strings.HasPrefix(dep, module) && !inside(dep, "internal/core"):
				t.Errorf("%s is core and depends on %s", p.ImportPath, dep)
			case inside(p.ImportPath, drivers...) && inside(dep, above...):
				t.Errorf("%s is a driver and depends on %s", p.ImportPath, dep)
			case inside(p.ImportPath, "internal/agent", "internal/api", "internal/client") && inside(dep, "internal/cli", "internal/lab"):
				t.Errorf("%s must not know %s", p.ImportPath, dep)
			}
		}
	}
}

func TestCoreIsPure(t *testing.T) {
	banned := map[string]bool{"os": true, "net": true, "os/exec": true, "log": true, "log/slog": true, "syscall": true, "unsafe": true}
	for _, p := range list(t) {
		if !inside(p.ImportPath, "internal/core") {
			continue
		}
		for _, imp := range p.Imports {
			if banned[imp] || strings.HasPrefix(imp, "net/") && imp != "net/netip" && imp != "net/url" {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}

func TestStorageDriversDoNotKnowOneAnother(t *testing.T) {
	root := module + "internal/storage/"
	for _, p := range list(t) {
		if !strings.HasPrefix(p.ImportPath, root) {
			continue
		}
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, root) && dep != p.ImportPath && !strings.HasPrefix(p.ImportPath, dep) {
				t.Errorf("%s depends on %s", p.ImportPath, dep)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t) {
		doc := ""
		for _, f := range p.GoFiles {
			ast, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.Doc != nil {
				doc += ast.Doc.Text()
			}
		}
		if len(strings.Fields(doc)) < 10 {
			t.Errorf("%s: the package comment does not say what it is: %q", p.ImportPath, doc)
		}
	}
}
