package qemu

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sauh.dev/sauh/internal/core/model"
)

func TestAGuestIsReceivedWithTheDevicesItWasStartedWith(t *testing.T) {
	here := smallSpec()
	here.Machine = withLayout("pc-i440fx-9.2")
	for _, c := range []struct {
		machine string
		panics  bool
	}{
		{"pc-i440fx-9.2", false}, // by a program that knew no layouts
		{"pc-i440fx-9.2+sauh1", true},
	} {
		there := here
		there.Machine = c.machine
		got, err := Relocate(t.Context(), there, "/run/two", TCG, node1{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Machine != c.machine {
			t.Errorf("it arrives as a %s, was a %s", got.Machine, c.machine)
		}
		argv := strings.Join(Argv(got), " ")
		if strings.Contains(argv, "pvpanic") != c.panics || strings.Contains(argv, "-action") != c.panics {
			t.Errorf("%s: %s", c.machine, argv)
		}
		if i := slices.Index(Argv(got), "-machine"); Argv(got)[i+1] != "pc-i440fx-9.2,graphics=off" {
			t.Errorf("QEMU is told the machine type %s", Argv(got)[i+1])
		}
	}
}

func TestAMachineThatThisProgramDoesNotKnowIsRefused(t *testing.T) {
	here := smallSpec()
	for _, machine := range []string{
		"pc-i440fx-9.2+sauh99", "pc-i440fx-9.2+sauh0", "pc-i440fx-9.2+sauh01", "pc-i440fx-9.2+sauhx", "pc-i440fx-9.2+sauh",
	} {
		here.Machine = machine
		if _, err := Relocate(t.Context(), here, "/run/two", TCG, node1{}); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: %v", machine, err)
		}
	}
}

// Two versions of this program compare the names of their machines before a migration, and the first version knew no more than that.
func TestGuestsOfTwoLayoutsHaveMachinesOfDifferentNames(t *testing.T) {
	if withLayout("pc-i440fx-9.2") == "pc-i440fx-9.2" {
		t.Error("a guest with more devices has the machine's name of one without")
	}
}
