package lab

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestTheRulesDropExactlyThePartition(t *testing.T) {
	for name, p := range map[string]Partition{
		"groups":  {Groups: [][]string{{"n1"}, {"n2", "n3"}}},
		"one-way": {Groups: [][]string{{"n1"}, {"n2"}}, OneWay: true, Network: Cluster},
		"none":    {},
	} {
		t.Run(name, func(t *testing.T) {
			set := map[Drop]bool{}
			if p.Groups != nil {
				drops, err := p.drops(func(string) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range drops {
					set[d] = true
				}
			}
			golden(t, "testdata/"+name+".nft", ruleset(sortDrops(set)))
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
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

func TestANodeSeesTheHostsDisksAndNothingElseOfIt(t *testing.T) {
	mountinfo := strings.Join([]string{
		"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
		"22 27 0:21 / /proc rw - proc proc rw",
		"23 27 0:22 / /sys rw - sysfs sysfs rw",
		"24 27 0:6 / /dev rw - devtmpfs devtmpfs rw",
		"40 27 0:40 / /run/lock rw - tmpfs tmpfs rw",
		"41 27 254:1 / /var rw shared:5 - xfs /dev/vdb rw",
		"42 27 254:2 / /tmp rw - ext4 /dev/vdc rw",
		`43 27 254:3 / /mnt/a\040b rw - ext4 /dev/vdd rw`,
		"44 27 0:50 / /home rw - nfs4 server:/home rw",
	}, "\n")
	if diff := cmp.Diff([]string{"/", "/var", "/home"}, hostLayers(mountinfo)); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
}

func TestAUnitIsReadFromNameAndCommand(t *testing.T) {
	for s, want := range map[string]Unit{
		"web=sleep 10": {Name: "web", Argv: []string{"sleep", "10"}, Restart: true},
		"guard!=true":  {Name: "guard", Argv: []string{"true"}},
	} {
		got, err := ParseUnit(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s, diff)
		}
	}
	for _, s := range []string{"", "web", "web=", "=true", "../x=true"} {
		if _, err := ParseUnit(s); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestAConfigIsCompletedOrRefusedWithASentence(t *testing.T) {
	c, err := Config{}.complete()
	if err != nil {
		t.Fatal(err)
	}
	c.Binary = ""
	want := Config{Name: "room", Dir: "/var/lib/sauh-lab/room", Nodes: 3, Units: DefaultUnits()}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	_, err = Config{Name: "Über"}.complete()
	if want := `name: "Über" cannot name a room: use lower-case letters, digits and '-', at most 20 characters`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAnErrorKeepsItsKindOverTheSocket(t *testing.T) {
	for _, kind := range []error{model.ErrNotFound, model.ErrInvalid, model.ErrBusy, model.ErrUnavailable} {
		err := errorResponse(model.Errorf(kind, "a sentence")).err()
		if !errors.Is(err, kind) || err.Error() != "a sentence" {
			t.Errorf("%v became %v", kind, err)
		}
	}
	if err := (response{}).err(); err != nil {
		t.Errorf("no error became %v", err)
	}
}
