package agent

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
)

// What follows is asked of values that somebody sets now. A file that has others stays readable: it may come from elsewhere.

var tag = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.+-]*$`)

// refuseValues refuses values that could have no good effect, by the first key. conf is the configuration with them in it.
func refuseValues(ctx context.Context, conf *pveconf.Guest, set map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if err := refuseValue(ctx, conf, key, set[key]); err != nil {
			return err
		}
	}
	return nil
}

func refuseValue(ctx context.Context, conf *pveconf.Guest, key, value string) error {
	family, _, _ := pveconf.SplitIndex(key)
	switch {
	case key == "tags":
		for _, t := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(";, ", r) }) {
			if !tag.MatchString(t) {
				return model.Invalidf(key, "%q is not a tag: use letters, digits, '_', '-', '+' and '.'; several are separated by ';'", t)
			}
		}
	case key == "cpu":
		return qemu.KnowsCPU(ctx, conf.CPU())
	case key == "boot":
		for _, device := range conf.BootOrder() {
			if !slices.Contains(conf.Keys(), device) {
				return model.Invalidf(key, "the guest has no %s to boot from", device)
			}
		}
	case family == "ide" || family == "sata" || key == "efidisk0" || key == "tpmstate0":
		if volume, _, _ := strings.Cut(strings.TrimPrefix(value, "file="), ","); volume != "none" {
			return model.Invalidf(key, "this version makes no such disk: use virtio[n] or scsi[n]")
		}
	}
	return nil
}
