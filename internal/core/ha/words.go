package ha

import "strconv"

// Key implements Action.
func (TakeManager) Key() string { return "manager" }

// Key implements Action.
func (a Cut) Key() string { return "cut " + a.Node }

// Key implements Action.
func (a Move) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a ClearIntent) Key() string { return "intent " + a.VMID.SID() }

// Key implements Action.
func (a SetStatus) Key() string { return "status " + sid(a.Kind, a.VMID) }

// Key implements Action.
func (a Acknowledge) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Unacknowledge) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Start) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Stop) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Discard) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (Wake) Key() string { return "wake" }

// Why implements Action.
func (a TakeManager) Why() string { return a.Manager.Node + " becomes the HA manager: " + a.Reason }

// Key implements Action.
func (a AskFence) Key() string { return "ask " + a.Node + " " + a.Method }

// Key implements Action.
func (a Shoot) Key() string { return "shoot " + a.Node + " " + a.Method }

// Key implements Action.
func (a NoteHistory) Key() string { return "history " + a.Node }

// Key implements Action.
func (a DropCommand) Key() string { return "command " + sid(a.Kind, a.VMID) }

// Key implements Action.
func (a Reset) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Migrate) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Handover) Key() string { return "guest " + a.VMID.SID() }

// Why implements Action.
func (a AskFence) Why() string { return a.Method + " is asked about " + a.Node + ": " + a.Reason }

// Why implements Action.
func (a Shoot) Why() string { return a.Method + " shoots " + a.Node + ": " + a.Reason }

// Why implements Action.
func (a NoteHistory) Why() string { return a.Node + " was silent: " + a.Reason }

// Why implements Action.
func (a DropCommand) Why() string {
	return "the command for " + sid(a.Kind, a.VMID) + " is refused: " + a.Reason
}

// Why implements Action.
func (a Reset) Why() string { return "reset " + sid(a.Kind, a.VMID) + ": " + a.Reason }

// Why implements Action.
func (a Migrate) Why() string {
	return "migrate " + sid(a.Kind, a.VMID) + " to " + a.Target + ": " + a.Reason
}

// Why implements Action.
func (a Handover) Why() string {
	return "hand " + sid(a.Kind, a.VMID) + " over to " + a.To + ": " + a.Reason
}

// Why implements Action.
func (a Cut) Why() string { return a.Node + " is cut off: " + a.Reason }

// Why implements Action.
func (a Move) Why() string {
	return sid(a.Kind, a.VMID) + " moves from " + a.From + " to " + a.To + ": " + a.Reason
}

// Why implements Action.
func (a ClearIntent) Why() string { return "the migration of " + a.VMID.SID() + " ends: " + a.Reason }

// Why implements Action.
func (a SetStatus) Why() string {
	return sid(a.Kind, a.VMID) + " is " + string(a.Status.State) + ": " + a.Status.Reason
}

// Why implements Action.
func (a Acknowledge) Why() string { return a.VMID.SID() + " goes under the guard: " + a.Reason }

// Why implements Action.
func (a Unacknowledge) Why() string { return a.VMID.SID() + " leaves the guard: " + a.Reason }

// Why implements Action.
func (a Start) Why() string {
	return "start " + sid(a.Kind, a.VMID) + ", attempt " + strconv.Itoa(a.Attempt) + ": " + a.Reason
}

// Why implements Action.
func (a Stop) Why() string { return "stop " + sid(a.Kind, a.VMID) + ": " + a.Reason }

// Why implements Action.
func (a Discard) Why() string { return "kill the QEMU of " + a.VMID.SID() + ": " + a.Reason }

// Why implements Action.
func (a Wake) Why() string { return "wait until " + a.At.String() }
