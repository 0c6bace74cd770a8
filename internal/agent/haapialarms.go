package agent

import (
	"context"
	"errors"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// Alarms implements api.HAAlarms.
func (b *beacons) Alarms(context.Context) ([]api.HAAlarm, error) { return b.alarms(), nil }

// AcknowledgeAlarms implements api.HAAlarms.
func (b *beacons) AcknowledgeAlarms(_ context.Context, sid string) error {
	id, err := pveconf.ParseSID(sid)
	if err != nil {
		return err
	}
	s, found := b.sender.Load(), false
	if s == nil {
		return model.Errorf(model.ErrUnavailable, "the double-run detector of %s does not run: its log says why", b.node)
	}
	for _, a := range s.Alarms() {
		if a.VMID != id {
			continue
		}
		found = true
		if err := s.Acknowledge(a.ID); err != nil && !errors.Is(err, model.ErrNotFound) {
			return err
		}
	}
	if !found {
		return model.Errorf(model.ErrNotFound, "%s has no alarm about %s", b.node, id.SID())
	}
	return nil
}
