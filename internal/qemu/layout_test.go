package qemu

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
)

func TestAGuestIsReceivedWithTheDevicesItWasStartedWith(t *testing.T) {
	here := smallSpec()
	here.Machine = withLayout("pc-i440fx-10.0")
	for _, c := range []struct {
		machine string
		panics  bool
	}{
		{"pc-i440fx-10.0", false}, // by a program that knew no layouts
		{"pc-i440fx-10.0+sauh1", true},
	} {
		got, err := here.OnMachine(c.machine)
		if err != nil {
			t.Fatal(err)
		}
		want := here
		want.Machine = c.machine
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		argv := strings.Join(Argv(got), " ")
		if strings.Contains(argv, "pvpanic") != c.panics || strings.Contains(argv, "-action") != c.panics {
			t.Errorf("%s: %s", c.machine, argv)
		}
		if i := slices.Index(Argv(got), "-machine"); Argv(got)[i+1] != "pc-i440fx-10.0,graphics=off" {
			t.Errorf("QEMU is told the machine type %s", Argv(got)[i+1])
		}
	}
}

func TestAMachineThatThisProgramDoesNotKnowIsRefused(t *testing.T) {
	here := smallSpec()
	here.Machine = withLayout("pc-i440fx-10.0")
	for _, machine := range []string{
		"pc-i440fx-10.0+sauh99", "pc-i440fx-10.0+sauh0", "pc-i440fx-10.0+sauh01", "pc-i440fx-10.0+sauhx", "pc-i440fx-10.0+sauh", "pc-i440fx-9.2+sauh1", "",
	} {
		if _, err := here.OnMachine(machine); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: %v", machine, err)
		}
	}
}

// Two versions of this program compare the names of their machines before a migration, and the first version knew no more than that.
func TestGuestsOfTwoLayoutsHaveMachinesOfDifferentNames(t *testing.T) {
	if withLayout("pc-i440fx-10.0") == "pc-i440fx-10.0" {
		t.Error("a guest with more devices has the machine's name of one without")
	}
}
