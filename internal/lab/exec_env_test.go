package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAProgramInANodeHasOnePath(t *testing.T) {
	got := withPath([]string{"HOME=/root", "PATH=/usr/bin", "LANG=C"}, "/room:/usr/bin")
	if diff := cmp.Diff([]string{"HOME=/root", "LANG=C", "PATH=/room:/usr/bin"}, got); diff != "" {
		t.Error(diff)
	}
}
