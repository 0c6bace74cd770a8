package model_test

import (
	"errors"
	"fmt"
	"testing"

	"sauh.dev/sauh/internal/core/model"
)

func TestAnErrorKeepsItsKindAndItsTextBetweenProcesses(t *testing.T) {
	for _, kind := range []error{
		model.ErrNotFound, model.ErrExists, model.ErrBusy, model.ErrNoQuorum,
		model.ErrUnavailable, model.ErrConflict, model.ErrInvalid,
	} {
		sent := fmt.Errorf("start guest 100: %w", kind)
		got := model.FromKind(model.KindOf(sent), sent.Error())
		if !errors.Is(got, kind) || got.Error() != sent.Error() {
			t.Errorf("%v became %v", sent, got)
		}
	}
	other := errors.New("of no kind")
	if got := model.FromKind(model.KindOf(other), other.Error()); model.KindOf(got) != "" || got.Error() != other.Error() {
		t.Errorf("%v became %v of kind %q", other, got, model.KindOf(got))
	}
}
