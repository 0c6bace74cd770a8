package ha_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

func TestEachActionComparesWhatItRestsOn(t *testing.T) {
	type comparer interface{ Compares() []ha.Compare }
	tests := []struct {
		name   string
		action comparer
		want   []ha.Compare
	}{
		{"take manager", ha.TakeManager{IfRevision: 5, Manager: model.Manager{Node: "n1"}}, []ha.Compare{{Key: "ha/manager", Revision: 5}}},
		{"cut", ha.Cut{Node: "n3", LiveRevision: 30}, []ha.Compare{{Key: "live/n3", Revision: 30}}},
		{"move", ha.Move{VMID: 100, From: "n3", To: "n1", LiveRevision: 31, ConfigRevision: 7, ProtectedRevision: 8, ToRevision: 1}, []ha.Compare{
			{Key: "live/n3", Revision: 31},
			{Key: "config/nodes/n3/qemu-server/100.conf", Revision: 7},
			{Key: "protected/100", Revision: 8},
			{Key: "intent/100", Revision: 0},
			{Key: "config/nodes/n1/qemu-server/100.conf", Revision: 0},
			{Key: "node/n1", Revision: 1},
		}},
		{"clear intent", ha.ClearIntent{VMID: 100, Revision: 9}, []ha.Compare{{Key: "intent/100", Revision: 9}}},
		{"status", ha.SetStatus{VMID: 100, IfRevision: 3}, []ha.Compare{{Key: "ha/service/vm:100", Revision: 3}}},
		{"status that acts on a command", ha.SetStatus{VMID: 100, Kind: "ct", IfRevision: 3, Command: 4}, []ha.Compare{
			{Key: "ha/service/ct:100", Revision: 3},
			{Key: "ha/command/ct:100", Revision: 4},
		}},
		{"refused command", ha.DropCommand{VMID: 100, Revision: 4}, []ha.Compare{{Key: "ha/command/vm:100", Revision: 4}}},
		{"history", ha.NoteHistory{Node: "n3", Revision: 6}, []ha.Compare{{Key: "ha/history/n3", Revision: 6}}},
		{"hand over", ha.Handover{VMID: 100, From: "n1", To: "n2", ConfigRevision: 7, ProtectedRevision: 8, StatusRevision: 3, ToRevision: 2}, []ha.Compare{
			{Key: "config/nodes/n1/qemu-server/100.conf", Revision: 7},
			{Key: "config/nodes/n2/qemu-server/100.conf", Revision: 0},
			{Key: "protected/100", Revision: 8},
			{Key: "intent/100", Revision: 0},
			{Key: "ha/service/vm:100", Revision: 3},
			{Key: "node/n2", Revision: 2},
		}},
		{"acknowledge", ha.Acknowledge{VMID: 100, Node: "n1", Revision: 8, ConfigRevision: 7}, []ha.Compare{
			{Key: "protected/100", Revision: 8},
			{Key: "config/nodes/n1/qemu-server/100.conf", Revision: 7},
		}},
		{"unacknowledge", ha.Unacknowledge{VMID: 100, Revision: 8}, []ha.Compare{{Key: "protected/100", Revision: 8}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.action.Compares()); diff != "" {
				t.Errorf("compares differ (-want +got):\n%s", diff)
			}
		})
	}
}
