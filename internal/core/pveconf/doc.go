// Package pveconf reads and prints the text formats in which Proxmox VE keeps
// its configuration: the guest file (<vmid>.conf), section files (storage.cfg and
// its kin) and the property strings inside both.
//
// It does not decide what a configuration means for a node, touches no file and
// knows no clock: text goes in, values come out, and back.
//
// Invariant: what is not changed is printed as it was read. Keys keep their
// order, keys that nothing here knows are kept, snapshot sections stay verbatim.
// What is wrong is refused with the number of its line. Start reading with
// [ParseGuest] and [ParseProps].
package pveconf
