// Package ipmi speaks IPMI 2.0 over the network (RMCP+) with a BMC, as much of it as
// fencing needs: power state, power off, system GUID.
//
// It is not a general IPMI client: no IPMI 1.5, no cipher suite without
// authentication, integrity and encryption, no sensors.
//
// Invariant: an answer counts only if it belongs to the question, by session, sequence number and
// command, and carries the right authentication code. So a datagram that is late, doubled or forged is
// never a state of the power. docs/adr/0010 says why this is no library. Start reading with [Client].
package ipmi
