package storage_test

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"sauh.dev/sauh/internal/storage"
)

func TestWhatIsAwayIsUnavailableAndNotTheOtherWayRound(t *testing.T) {
	err := storage.Away("storage %s does not answer", "nas")
	if !errors.Is(err, storage.ErrAway) || !errors.Is(err, storage.ErrUnavailable) || err.Error() != "storage nas does not answer" {
		t.Errorf("got %v", err)
	}
	if errors.Is(storage.ErrUnavailable, storage.ErrAway) {
		t.Error("all that is unavailable is away")
	}
}

func TestAnErrorOfTheConnectionIsTheStoragesAndOneOfTheFileIsNot(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{
		syscall.ENOTCONN: true, syscall.EIO: true, syscall.ESTALE: true, syscall.ETIMEDOUT: true,
		syscall.ENOENT: false, syscall.EACCES: false, syscall.EINVAL: false, syscall.EBUSY: false,
	} {
		if got := storage.IsAway(&fs.PathError{Op: "stat", Path: "/srv/nas", Err: errno}); got != want {
			t.Errorf("%v: %v", errno, got)
		}
	}
	if !storage.SaysAway("Transport endpoint is not connected") || storage.SaysAway("Permission denied") || storage.SaysAway("") {
		t.Error("QEMU's words are not understood")
	}
}
