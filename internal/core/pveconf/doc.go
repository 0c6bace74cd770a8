// Package pveconf reads and prints the text formats in which Proxmox VE keeps
// its configuration: the guest file (<vmid>.conf), section files (storage.cfg and
// its kin) and the property strings inside both.
//
// It does not decide what a configuration means for a node, touches no file and
// knows no clock: text goes in, values come out, and back.
//
// Invariant: what is not changed is printed as it was read, a guest's file byte for byte: blank
// lines, comments, keys that nothing here knows, snapshots. What is wrong is refused with the number of its
// line and with what is allowed.
//
// What a key of a guest's file may say stands in schema_gen.go, made from the schema of Proxmox VE's API, and in
// schema_own.go and forms.go, where that says too little. To make the former anew, with the schema's file:
//
//	SAUH_PVE_SCHEMA=schema.jsonl go test ./internal/core/pveconf -run TheTable -update
//
// What a key does today stands in [Effects]. Start reading with [ParseGuest] and [ParseProps].
package pveconf
