//go:build linux

package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// SystemUUID is the machine's UUID as its firmware names it (SMBIOS, through DMI), in lower case. "" on a machine without
// one, such as a container's host that hides it.
func SystemUUID() (string, error) {
	text, err := os.ReadFile("/sys/class/dmi/id/product_uuid")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("read the system's UUID: %w", err)
	}
	return strings.ToLower(strings.TrimSpace(string(text))), nil
}
