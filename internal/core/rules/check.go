package rules

import "sauh.dev/sauh/internal/core/pveconf"

// Check finds the contradictions among the rules that are not disabled, in a cluster of these nodes: none means that the
// rules may be written. The smallest contradictions come first, then in the order of the file.
func Check(rs []pveconf.HARule, nodes []Node) []Conflict { return nil }

// Compile returns the rules in effect. It drops those that Proxmox VE would drop, and all that [Check] names.
func Compile(rs []pveconf.HARule, nodes []Node) *Set { return &Set{} }
