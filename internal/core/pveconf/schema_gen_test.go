package pveconf

import (
	"bufio"
	"bytes"
	"encoding/json"
	goflag "flag"
	"fmt"
	"go/format"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = goflag.Bool("update", false, "write the files that the tests compare with")

// SAUH_PVE_SCHEMA names a file with one JSON object for each method of Proxmox VE's API.
const schemaVariable = "SAUH_PVE_SCHEMA"

// fact is what the schema says of a parameter, as far as it is no prose.
type fact struct {
	Type, Pattern, Alias string
	Minimum, Maximum     any
	MaxLength            int
	Enum                 []string
	Default              any
	Format               json.RawMessage
	Optional             int
}

// requestOnly are parameters of the request that no file has.
func requestOnly() []string {
	return []string{
		"archive", "bwlimit", "force", "ha-managed", "import-working-storage", "live-restore", "node", "pool", "start", "storage", "unique", "vmid",
	}
}

// patternNames are our forms for the patterns of the schema. A pattern that changes has no name, and the generator stops.
func patternNames() map[string]string {
	const machineType = `(pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|virt(?:-\d+(\.\d+)+)?(\+pve\d+)?)`
	return map[string]string{
		machineType:                                              "machine-type",
		`(?^:\d+(?:-\d+)?(?:;\d+(?:-\d+)?)*)`:                    "ranges",
		`(?^:^(0x)[0-9a-fA-F]{16})`:                              "wwn",
		`[A-Za-z0-9\-_\s]{,8}`:                                   "scsi-vendor",
		`[A-Za-z0-9\-_\s]{,16}`:                                  "scsi-product",
		`[a-zA-Z0-9\-]+`:                                         "word",
		`/dev/parport\d+|/dev/usb/lp\d+`:                         "parallel-port",
		`(/dev/[^,]+|socket)`:                                    "serial-port",
		`\d+(\.\d+)+`:                                            "qemu-version",
		`net\d+=\d+(,net\d+=\d+)*`:                               "running-mtu",
		`(?^u:^((?>[+-]?[\w\-\._=]+,?)+)$)`:                      "running-cpu",
		`(ide|sata|scsi|virtio)\d+`:                              "pve-qm-bootdisk",
		`(now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?)`: "start-date",
		`(?:[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}|[01])`:                                                    "generation-id",
		`(?^:(?:(?:(?^:(0x)?([0-9A-Fa-f]{4}):(0x)?([0-9A-Fa-f]{4})))|(?:(?^:(\d+)\-(\d+(\.\d+)*)))|[Ss][Pp][Ii][Cc][Ee]))`: "usb-host",
	}
}

// readSchema returns the keys of a guest's file: what a guest is created with, and what its configuration is read with.
func readSchema(t *testing.T, path string) map[string]fact {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string]fact{}
	lines := bufio.NewScanner(bytes.NewReader(file))
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var m struct {
			Method, Path string
			Parameters   map[string]fact
			Returns      struct{ Properties json.RawMessage }
		}
		var head struct{ Method, Path string }
		if err := json.Unmarshal(lines.Bytes(), &head); err != nil {
			t.Fatal(err)
		}
		create := head.Method == "POST" && head.Path == "/nodes/{node}/qemu"
		read := head.Method == "GET" && head.Path == "/nodes/{node}/qemu/{vmid}/config"
		if !create && !read {
			continue
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatalf("%s %s: %v", head.Method, head.Path, err)
		}
		if read {
			var more map[string]fact
			if err := json.Unmarshal(m.Returns.Properties, &more); err != nil {
				t.Fatal(err)
			}
			for name, f := range more {
				if _, have := facts[name]; !have {
					facts[name] = f
				}
			}
			continue
		}
		maps.Copy(facts, m.Parameters)
	}
	for _, name := range requestOnly() {
		if _, have := facts[name]; !have {
			t.Errorf("the schema has no parameter %s any more", name)
		}
		delete(facts, name)
	}
	return facts
}

// literal prints a fact as Go.
func literal(t *testing.T, name string, f fact, inside bool) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "name: %q", name)
	if f.Alias != "" {
		return b.String() + fmt.Sprintf(", aliasOf: %q", f.Alias)
	}
	var named string
	_ = json.Unmarshal(f.Format, &named) // an object is a structured value
	switch {
	case len(f.Format) > 0 && named == "", named == "pve-qm-ide":
		b.WriteString(", kind: kindStructured")
		named = ""
	case f.Type != "string":
		b.WriteString(", kind: kind" + strings.ToUpper(f.Type[:1]) + f.Type[1:])
	}
	add := func(field string, v any) {
		if text := fmt.Sprint(v); v != nil && text != "" {
			fmt.Fprintf(&b, ", %s: %q", field, text)
		}
	}
	add("low", f.Minimum)
	add("high", f.Maximum)
	add("enum", strings.Join(f.Enum, " "))
	if named == "" && f.Pattern != "" {
		if named = patternNames()[f.Pattern]; named == "" {
			t.Errorf("%s: no form for the pattern %s", name, f.Pattern)
		}
	}
	add("form", named)
	if f.MaxLength > 0 {
		fmt.Fprintf(&b, ", maxLen: %d", f.MaxLength)
	}
	if def := fmt.Sprint(f.Default); !strings.Contains(def, " ") { // others are sentences
		add("def", f.Default)
	}
	if inside && f.Optional == 0 {
		b.WriteString(", required: true")
	}
	return b.String()
}

// generate prints the file schema_gen.go.
func generate(t *testing.T, facts map[string]fact) []byte {
	t.Helper()
	var keys, shapes, functions strings.Builder
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		f := facts[name]
		fmt.Fprintf(&keys, "case %q:\nreturn option{%s}, true\n", name, literal(t, name, f, false))
		var inside map[string]fact
		if json.Unmarshal(f.Format, &inside) != nil || len(inside) == 0 {
			continue
		}
		function := "options" + strings.ToUpper(name[:1]) + strings.NewReplacer("[n]", "", "0", "", "_", "").Replace(name[1:])
		if name == "numa[n]" {
			function = "optionsNUMANode"
		}
		fmt.Fprintf(&shapes, "case %q:\nreturn %s()\n", name, function)
		fmt.Fprintf(&functions, "\nfunc %s() []option {\nreturn []option{\n", function)
		for _, o := range slices.Sorted(maps.Keys(inside)) {
			fmt.Fprintf(&functions, "{%s},\n", literal(t, o, inside[o], true))
		}
		functions.WriteString("}\n}\n")
	}
	src := `// Code generated by TestTheTableSaysWhatTheSchemaSays -update. DO NOT EDIT.

package pveconf

// schemaKey returns what the API's schema says of a key of a guest's file: type, range, values allowed, form, default.
func schemaKey(key string) (option, bool) {
switch key {
` + keys.String() + `}
return option{}, false
}

// schemaOptions returns what the schema says of the options of a structured key.
func schemaOptions(key string) []option {
switch key {
` + shapes.String() + `}
return nil
}
` + functions.String()
	out, err := format.Source([]byte(src))
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	return out
}

func TestTheTableSaysWhatTheSchemaSays(t *testing.T) {
	path := os.Getenv(schemaVariable)
	if path == "" {
		t.Skip(schemaVariable + " does not name the schema of Proxmox VE's API, which is no part of Sauh: the table cannot be compared with it")
	}
	want := generate(t, readSchema(t, path))
	if *update {
		if err := os.WriteFile("schema_gen.go", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("schema_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("run this test with -update (-schema +table):\n%s", diff)
	}
}

// Every name of a form in the tables has its form, or values of it would not be checked.
func TestEveryFormOfTheTablesIsKnown(t *testing.T) {
	seen := func(path string, o option) {
		if _, ok := formOf(o.form); o.form != "" && !ok {
			t.Errorf("%s: nothing checks the form %s", path, o.form)
		}
	}
	for _, key := range everyKey() {
		o, ok := keyOption(key)
		if !ok {
			t.Errorf("%s is not known", key)
		}
		seen(key, o)
		if o.kind != kindStructured {
			continue
		}
		all := optionsOf(key)
		if len(all) == 0 {
			t.Errorf("%s is structured and has no options", key)
		}
		for _, p := range all {
			seen(key+"/"+p.name, p)
		}
	}
}

// everyKey lists the keys of the tables, the numbered ones with the number 0.
func everyKey() []string {
	src, err := os.ReadFile("schema_gen.go")
	if err != nil {
		panic(err)
	}
	keys := []string{"snapstate"}
	body, _, _ := strings.Cut(string(src), "// schemaOptions")
	for line := range strings.Lines(body) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "case "); ok {
			keys = append(keys, strings.ReplaceAll(strings.Trim(name, `":`), "[n]", "0"))
		}
	}
	return keys
}
