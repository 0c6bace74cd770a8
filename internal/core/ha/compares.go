package ha

import "sauh.dev/sauh/internal/core/model"

// Compares are the conditions of the transaction, as in all that follow; every key that it writes is among them.
func (a TakeManager) Compares() []Compare { return []Compare{{model.ManagerKey, a.IfRevision}} }

// Compares the silent record.
func (a Cut) Compares() []Compare {
	return []Compare{{model.LivePrefix + a.Node, a.LiveRevision}}
}

// Compares everything that must still be so for the guest to move.
func (a Move) Compares() []Compare {
	return []Compare{
		{model.LivePrefix + a.From, a.LiveRevision},
		{model.GuestConfigKey(a.From, a.VMID), a.ConfigRevision},
		{model.ProtectedPrefix + a.VMID.String(), a.ProtectedRevision},
		{model.IntentPrefix + a.VMID.String(), 0},
		{model.GuestConfigKey(a.To, a.VMID), 0},
		{model.NodePrefix + a.To, a.ToRevision},
	}
}

// Compares the intent.
func (a ClearIntent) Compares() []Compare {
	return []Compare{{model.IntentPrefix + a.VMID.String(), a.Revision}}
}

// Compares the status record, and the command that it acts on.
func (a SetStatus) Compares() []Compare {
	c := []Compare{{model.HAStatusPrefix + sid(a.Kind, a.VMID), a.IfRevision}}
	if a.Command != 0 {
		c = append(c, Compare{model.HACommandPrefix + sid(a.Kind, a.VMID), a.Command})
	}
	return c
}

// Compares the command.
func (a DropCommand) Compares() []Compare {
	return []Compare{{model.HACommandPrefix + sid(a.Kind, a.VMID), a.Revision}}
}

// Compares the history.
func (a NoteHistory) Compares() []Compare {
	return []Compare{{model.HAHistoryPrefix + a.Node, a.Revision}}
}

// Compares everything that must still be so for the guest to go where the manager said.
func (a Handover) Compares() []Compare {
	return []Compare{
		{model.GuestConfigKey(a.From, a.VMID), a.ConfigRevision},
		{model.GuestConfigKey(a.To, a.VMID), 0},
		{model.ProtectedPrefix + a.VMID.String(), a.ProtectedRevision},
		{model.IntentPrefix + a.VMID.String(), 0},
		{model.HAStatusPrefix + sid(a.Kind, a.VMID), a.StatusRevision},
		{model.NodePrefix + a.To, a.ToRevision},
	}
}

// Compares the acknowledgement and the file; nothing is written if it is Written.
func (a Acknowledge) Compares() []Compare {
	return []Compare{
		{model.ProtectedPrefix + a.VMID.String(), a.Revision},
		{model.GuestConfigKey(a.Node, a.VMID), a.ConfigRevision},
	}
}

// Compares the acknowledgement.
func (a Unacknowledge) Compares() []Compare {
	return []Compare{{model.ProtectedPrefix + a.VMID.String(), a.Revision}}
}
