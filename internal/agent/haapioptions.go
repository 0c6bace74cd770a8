package agent

import (
	"context"
	"errors"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// haOptions are the lines of datacenter.cfg that work. It implements api.DatacenterOptions.
type haOptions struct {
	st     store.Store
	mirror *mirror.Mirror
}

// Options implements api.DatacenterOptions.
func (h *haOptions) Options(context.Context) (map[string]string, string, error) {
	d, digest, err := decodeKept(h.mirror.Snapshot(), datacenterKey, pveconf.ParseDatacenter)
	if err != nil {
		return nil, "", err
	}
	out := map[string]string{}
	for _, key := range d.Keys() {
		out[key], _, _ = d.Get(key)
	}
	return out, digest, nil
}

// SetOptions implements api.DatacenterOptions. Keys without effect are refused; those that are in the file already stay.
func (h *haOptions) SetOptions(ctx context.Context, e api.Edit) error {
	for _, key := range append(sortedKeys(e.Set), e.Delete...) {
		if !slices.Contains(api.OptionKeys(), key) {
			return model.Invalidf(key, "has no effect in this version: only %s have", strings.Join(api.OptionKeys(), ", "))
		}
	}
	return editFile(ctx, h.st, "change datacenter.cfg", datacenterKey, func(old []byte) ([]byte, error) {
		if err := checkDigest(old, e.Digest); err != nil {
			return nil, err
		}
		d, err := pveconf.ParseDatacenter(old)
		if err != nil {
			return nil, inFile(datacenterKey, err)
		}
		for _, key := range e.Delete {
			d = d.With(key, "")
		}
		for _, key := range sortedKeys(e.Set) {
			if strings.ContainsAny(e.Set[key], "\r\n") || strings.TrimSpace(e.Set[key]) == "" {
				return nil, model.Invalidf(key, "must be one line that is not empty: delete it to have the default")
			}
			// Alone it has no line that the person could mean.
			if _, err := (pveconf.Datacenter{}).With(key, e.Set[key]).HA(); err != nil {
				var wrong *model.InvalidError
				if errors.As(err, &wrong) {
					return nil, model.Invalidf(wrong.Param, "%s", wrong.Msg)
				}
				return nil, err
			}
			d = d.With(key, e.Set[key])
		}
		if _, err := d.HA(); err != nil {
			return nil, inFile(datacenterKey, err)
		}
		return d.Print(), nil
	})
}
