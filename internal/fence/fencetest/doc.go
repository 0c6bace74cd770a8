// Package fencetest has the BMCs that fencing is tried on: Debian's IPMI simulator,
// with power that the test controls; the Redfish BMC of package bmc on loopback; and a relay that does to datagrams what networks do.
//
// It is no part of production. Each BMC hangs on the test that starts it and
// uses loopback and a directory of its own. Start reading with [StartIPMISim] and [StartRedfish].
package fencetest
