package qemu

import (
	"regexp"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

var (
	// QEMU repeats the option it objects to in front of its reason.
	optionEcho = regexp.MustCompile(`^qemu-system-x86_64: (-[a-z]+ (\{.*\}|\S+): )?`)
	openFailed = regexp.MustCompile(`Could not open '([^']+)': (.+)`)
)

// explain turns what QEMU printed when it did not start into a sentence with
// one of the sentinels in it.
func explain(s Spec, stderr string, cause error) error {
	text := lastComplaint(stderr)
	has := func(part string) bool { return strings.Contains(stderr, part) }
	switch {
	case has(`Failed to get "`) && has("lock"):
		return model.Errorf(storage.ErrInUse, "the disk image %s of guest %s is in use by another process: end that one first (%s)", imageIn(stderr, s), s.VMID, text)
	case has("Device or resource busy") && has("/dev/net/tun"):
		return model.Errorf(model.ErrBusy, "a network interface of guest %s is in use by another process (%s)", s.VMID, text)
	case has("Cannot lock pid file") || has("cannot create PID file"):
		return model.Errorf(model.ErrBusy, "guest %s is running already: another process holds its pidfile (%s)", s.VMID, text)
	case has("cannot set up guest memory"):
		return model.Errorf(model.ErrUnavailable, "this node has not enough free memory for the %d MiB of guest %s", s.MemoryMiB, s.VMID)
	case has("unsupported machine type"):
		return model.Errorf(model.ErrInvalid, "this node's QEMU does not know the machine type %s of guest %s", s.Machine, s.VMID)
	}
	if m := openFailed.FindStringSubmatch(stderr); m != nil {
		if storage.SaysAway(m[2]) {
			return storage.Away("the disk image %s of guest %s cannot be opened: %s", m[1], s.VMID, m[2])
		}
		kind := model.ErrUnavailable
		if m[2] == "No such file or directory" {
			kind = model.ErrNotFound
		}
		return model.Errorf(kind, "the disk image %s of guest %s cannot be opened: %s", m[1], s.VMID, m[2])
	}
	if text == "" {
		text = cause.Error()
	}
	return model.Errorf(model.ErrUnavailable, "QEMU refused to start guest %s: %s", s.VMID, text)
}

// lastComplaint is the last line that is no warning.
func lastComplaint(stderr string) string {
	last := ""
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.Contains(line, ": warning: ") && !strings.HasPrefix(line, "Is another process") {
			last = optionEcho.ReplaceAllString(line, "")
		}
	}
	return last
}

// imageIn is the image whose option QEMU repeats.
func imageIn(stderr string, s Spec) string {
	for _, d := range s.Disks {
		if strings.Contains(stderr, "file-"+d.ID) || strings.Contains(stderr, "drive-"+d.ID+`"`) || strings.Contains(stderr, d.Path) {
			return d.Path
		}
	}
	return "(unknown)"
}
