package pveconf_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

const storageCfg = `# the disks of the house
dir: local
	path /var/lib/vz
	content iso,vztmpl,backup

dir: nas
	path /mnt/nas
	shared 1
	# measured in spring
	content images
	prune-backups keep-all=1
	late-writes no
	nodes n1,n2
	is_mountpoint yes

nfs: old
	server 10.0.0.9
	export /vol1
	path /mnt/pve/old
	disable

# no more
`

// sortOfSame ignores where in the file things stood.
func sortOfSame() cmp.Option {
	return cmp.Options{cmpopts.IgnoreFields(pveconf.Option{}, "Line"), cmpopts.IgnoreFields(pveconf.Section{}, "Line"), cmpopts.EquateEmpty()}
}

func TestSectionFileIsPrintedAsItWasRead(t *testing.T) {
	f, err := pveconf.ParseSections([]byte(storageCfg))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Print()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(storageCfg, string(got)); diff != "" {
		t.Errorf("printed file differs (-want +got):\n%s", diff)
	}
}

func TestSectionFileOfRulesIsReadWithItsLines(t *testing.T) {
	got, err := pveconf.ParseSections([]byte("\n\nnode-affinity: db-near\r\n    nodes n1:2,n2\r\n\tresources vm:100,vm:101\n\tstrict\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := pveconf.SectionFile{Sections: []pveconf.Section{{
		Type: "node-affinity", ID: "db-near", Line: 3,
		Options: []pveconf.Option{
			{Key: "nodes", Value: "n1:2,n2", Line: 4},
			{Key: "resources", Value: "vm:100,vm:101", Line: 5},
			{Key: "strict", Line: 6},
		},
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sections differ (-want +got):\n%s", diff)
	}
}

func TestSectionOptionsAreChangedWhereTheyStand(t *testing.T) {
	s := pveconf.Section{Type: "vm", ID: "100", Options: []pveconf.Option{{Key: "state", Value: "started"}, {Key: "comment", Value: "a"}}}
	f := pveconf.SectionFile{Sections: []pveconf.Section{s.With("state", "stopped").With("group", "g1").Without("comment")}}
	got, err := f.Print()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("vm: 100\n\tstate stopped\n\tgroup g1\n", string(got)); diff != "" {
		t.Errorf("printed file differs (-want +got):\n%s", diff)
	}
	if v, _ := s.Get("state"); v != "started" {
		t.Errorf("With changed the section it was called on: state %q", v)
	}
}

func TestWrongLinesAreNamedByNumberAndSentence(t *testing.T) {
	storages := func(s string) error { _, err := pveconf.ParseStorages([]byte(s)); return err }
	resources := func(s string) error { _, err := pveconf.ParseHAResources([]byte(s)); return err }
	tests := []struct {
		name, text string
		parse      func(string) error
		want       string
	}{
		{"header", "dir: nas\n\tpath /a\nrubbish\n", storages, `line 3: section: "rubbish" is no section header: write "type: id", and indent the lines that belong to it`},
		{"option first", "\tpath /a\n", storages, `line 1: path: stands before the first section: put a line such as "dir: nas" above it`},
		{"option twice", "dir: nas\n\tpath /a\n\tpath /b\n", storages, `line 3: path: stands already in line 2: remove one of the two`},
		{"key", "dir: nas\n\t=path /a\n", storages, `line 2: key: "=path" is no key: use a letter, then letters, digits, '-' and '_'`},
		{"carriage return", "vm: 100\n\tcomment a\rb\n", resources, `line 2: line: has a carriage return inside: write one key and its value on each line`},
		{"section twice", "vm: 100\n\nvm: 100\n", resources, `line 3: section: vm: 100 stands already in line 1: remove one of the two`},
		{"storage twice", "dir: nas\n\tpath /a\nnfs: nas\n", storages, `line 3: storage: nas stands already in line 1: give one of the two another name`},
		{"storage name", "dir: -nas\n\tpath /a\n", storages, `line 1: storage: "-nas" is no storage name: use at least two letters, digits, '-', '_' and '.', a letter first and no sign last`},
		{"path missing", "# c\ndir: nas\n", storages, `line 2: path: storage nas needs an absolute path such as /mnt/nas`},
		{"path relative", "dir: nas\n\tpath mnt\n", storages, `line 2: path: storage nas needs an absolute path such as /mnt/nas`},
		{"boolean", "dir: nas\n\tpath /a\n\tshared maybe\n", storages, `line 3: shared: "maybe" is neither true nor false: use 1 or 0`},
		{"content", "dir: nas\n\tpath /a\n\tcontent images,pictures\n", storages, `line 3: content: "pictures" is not allowed: use images, rootdir, vztmpl, iso, backup, snippets, import, none`},
		{"nodes", "dir: nas\n\tpath /a\n\tnodes n1,N2\n", storages, `line 3: nodes: "N2" is not a node name: separate names by commas`},
		{"late writes", "dir: nas\n\tpath /a\n\tlate-writes 1\n", storages, `line 3: late-writes: "1" is not allowed: use yes, or no if a write that a node sent can never arrive after the node's guests are dead`},
		{"mount point", "dir: nas\n\tpath /a\n\tis_mountpoint mnt\n", storages, `line 3: is_mountpoint: "mnt" is not allowed: use yes, no, or the path of the mount point`},
		{"guest id", "vm: 99\n", resources, `line 1: vm: "99" is not a guest id: use a number from 100 to 999999999`},
		{"state", "vm: 100\n\tstate run\n", resources, `line 2: state: "run" is not allowed: use started, stopped, disabled or ignored`},
		{"auto-rebalance", "ct: 100\n\tauto-rebalance maybe\n", resources, `line 2: auto-rebalance: "maybe" is neither true nor false: use 1 or 0`},
		{"group", "vm: 100\n\tgroup 1\n", resources, `line 2: group: "1" is no name of a group: use at least two letters, digits, '-' and '_', a letter first`},
		{"type", "v1: 100\n", resources, `line 1: type: "v1" is no type of HA resource: use lower-case letters, such as vm`},
		{"count", "vm: 100\n\tmax_restart -1\n", resources, `line 2: max_restart: "-1" is not a number of tries: use 0 or more`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.parse(tt.text)
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, model.ErrInvalid) {
				t.Errorf("%v is not model.ErrInvalid", err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("sentence differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatCouldNotBeReadBackIsNotPrinted(t *testing.T) {
	tests := map[string]pveconf.Section{
		"value of two lines": {Type: "vm", ID: "100", Options: []pveconf.Option{{Key: "comment", Value: "a\n\nvm: 101"}}},
		"id with a blank":    {Type: "vm", ID: "1 0"},
		"key with a colon":   {Type: "vm", ID: "100", Options: []pveconf.Option{{Key: "a:b"}}},
		"comment without #":  {Type: "vm", ID: "100", Comments: []string{"vm: 7"}},
	}
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			if text, err := (pveconf.SectionFile{Sections: []pveconf.Section{s}}).Print(); err == nil {
				t.Errorf("printed %q", text)
			}
		})
	}
}

func TestStoragesAreReadTyped(t *testing.T) {
	got, err := pveconf.ParseStorages([]byte(storageCfg))
	if err != nil {
		t.Fatal(err)
	}
	want := []pveconf.Storage{
		{ID: "local", Type: "dir", Path: "/var/lib/vz", Content: []string{"iso", "vztmpl", "backup"}},
		{ID: "nas", Type: "dir", Path: "/mnt/nas", Shared: true, Content: []string{"images"}, Nodes: []string{"n1", "n2"}, Mountpoint: "/mnt/nas"},
		{ID: "old", Type: "nfs", Unsupported: `storage type "nfs" is not supported by this version: only dir is`},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pveconf.Storage{}, "Section"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("storages differ (-want +got):\n%s", diff)
	}
	for node, wanted := range map[string]bool{"n1": true, "n3": false} {
		if got[1].OnNode(node) != wanted {
			t.Errorf("nas on %s: got %v, want %v", node, !wanted, wanted)
		}
	}
	if got[2].OnNode("n1") {
		t.Error("an unsupported storage is used on n1")
	}
}

func TestASharedDirectoryHasLateWritesUnlessItSaysNo(t *testing.T) {
	tests := map[string]bool{
		"shared 1":                    true,
		"shared 1\n\tlate-writes no":  false,
		"shared 1\n\tlate-writes yes": true,
		"shared 0":                    false,
	}
	for lines, want := range tests {
		got, err := pveconf.ParseStorages([]byte("dir: nas\n\tpath /a\n\t" + lines + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got[0].LateWrites != want {
			t.Errorf("%q: late writes %v, want %v", lines, got[0].LateWrites, want)
		}
	}
}

func TestStoragesArePrintedWithUnknownKeysAndTypes(t *testing.T) {
	storages, err := pveconf.ParseStorages([]byte(storageCfg))
	if err != nil {
		t.Fatal(err)
	}
	storages[0].Disable = true
	storages[1].LateWrites = true
	storages[1].Nodes = nil
	storages = append(storages, pveconf.Storage{ID: "new", Type: "dir", Path: "/srv/new", Shared: true, Content: []string{"images"}})
	got, err := pveconf.PrintStorages(storages)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(
		"content iso,vztmpl,backup\n", "content iso,vztmpl,backup\n\tdisable 1\n",
		"\tlate-writes no\n", "", "\tnodes n1,n2\n", "",
		"\n# no more\n", "\ndir: new\n\tpath /srv/new\n\tcontent images\n\tshared 1\n\tlate-writes no\n").Replace(storageCfg)
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("storage.cfg differs (-want +got):\n%s", diff)
	}
	again, err := pveconf.ParseStorages(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(storages, again, cmpopts.IgnoreFields(pveconf.Storage{}, "Section"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("storages read again differ (-want +got):\n%s", diff)
	}
}

func TestAStorageThatIsWrongIsNotPrinted(t *testing.T) {
	_, err := pveconf.PrintStorages([]pveconf.Storage{{ID: "nas", Type: "dir", Path: "relative"}})
	if !errors.Is(err, model.ErrInvalid) {
		t.Errorf("got %v, want an invalid path", err)
	}
}

const resourcesCfg = `vm: 100
	state started
	group prefer-n1
	comment the ledger's guest

vm: 101
	max_restart 3
	failback 0
	auto-rebalance 0
	state stopped

ct: 102
	state started
`

func TestHAResourcesAreReadTyped(t *testing.T) {
	got, err := pveconf.ParseHAResources([]byte(resourcesCfg))
	if err != nil {
		t.Fatal(err)
	}
	want := []pveconf.HAResource{
		{Type: "vm", ID: "100", VMID: 100, State: pveconf.HAStarted, MaxRestart: 1, MaxRelocate: 1, Failback: true, AutoRebalance: true, Group: "prefer-n1", Comment: "the ledger's guest"},
		{Type: "vm", ID: "101", VMID: 101, State: pveconf.HAStopped, MaxRestart: 3, MaxRelocate: 1},
		{Type: "ct", ID: "102", VMID: 102, State: pveconf.HAStarted, MaxRestart: 1, MaxRelocate: 1, Failback: true, AutoRebalance: true, Unsupported: `resource type "ct" is not supported by this version: only vm is`},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pveconf.HAResource{}, "Section")); diff != "" {
		t.Errorf("resources differ (-want +got):\n%s", diff)
	}
	if got[1].SID() != "vm:101" {
		t.Errorf("sid %q", got[1].SID())
	}
}

func TestHAResourcesArePrintedBack(t *testing.T) {
	resources, err := pveconf.ParseHAResources([]byte(resourcesCfg))
	if err != nil {
		t.Fatal(err)
	}
	same, err := pveconf.PrintHAResources(resources)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(resourcesCfg, string(same)); diff != "" {
		t.Errorf("unchanged file differs (-want +got):\n%s", diff)
	}
	resources[0].State = pveconf.HADisabled
	resources[0].Comment = ""
	resources = append(resources, pveconf.NewHAResource(103, pveconf.HAStarted))
	got, err := pveconf.PrintHAResources(resources)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(resourcesCfg, "\tstate started\n\tgroup prefer-n1\n\tcomment the ledger's guest\n", "\tstate disabled\n\tgroup prefer-n1\n", 1) +
		"\nvm: 103\n\tstate started\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("changed file differs (-want +got):\n%s", diff)
	}
}

func TestAnEnabledResourceIsStarted(t *testing.T) {
	got, err := pveconf.ParseHAResources([]byte("vm: 100\n\tstate enabled\nvm: 101\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range got {
		if r.State != pveconf.HAStarted {
			t.Errorf("%s: state %s, want started", r.SID(), r.State)
		}
	}
}

func TestNamesOfHAResourcesAreParsed(t *testing.T) {
	for _, sid := range []string{"vm:100", "100"} {
		if id, err := pveconf.ParseSID(sid); err != nil || id != 100 {
			t.Errorf("%q: got %d, %v", sid, id, err)
		}
	}
	_, err := pveconf.ParseSID("ct:100")
	if err == nil || err.Error() != `sid: "ct:100" is no HA resource: use vm:<guest id>, such as vm:100` {
		t.Errorf("ct:100: got %v", err)
	}
}

func FuzzPrintedSectionsAreReadAsTheSame(f *testing.F) {
	f.Add(storageCfg)
	f.Add(resourcesCfg)
	f.Add("a: b\n c  d \t e\n#x\n\n y")
	f.Fuzz(func(t *testing.T, text string) {
		first, err := pveconf.ParseSections([]byte(text))
		if err != nil {
			return
		}
		printed, err := first.Print()
		if err != nil {
			t.Fatalf("print what was read: %v", err)
		}
		second, err := pveconf.ParseSections(printed)
		if err != nil {
			t.Fatalf("read what was printed: %v\n%s", err, printed)
		}
		if diff := cmp.Diff(first, second, sortOfSame()); diff != "" {
			t.Errorf("read again differs (-first +second):\n%s", diff)
		}
	})
}
