package qemu

import (
	"os"

	"golang.org/x/sys/unix"
)

// ProbeDirect reports whether the file at path can be opened with O_DIRECT,
// which some file systems (FUSE, older tmpfs) refuse.
func ProbeDirect(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
