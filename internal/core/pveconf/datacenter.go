package pveconf

import "time"

// ShutdownPolicy is what happens to HA resources when their node shuts down in good order.
type ShutdownPolicy string

// The policies of datacenter.cfg's ha: shutdown_policy=….
const (
	ShutdownConditional ShutdownPolicy = "conditional" // a reboot freezes, a shutdown fails over
	ShutdownFreeze      ShutdownPolicy = "freeze"      // they wait for their node
	ShutdownFailover    ShutdownPolicy = "failover"    // they are recovered elsewhere once the node is gone
	ShutdownMigrate     ShutdownPolicy = "migrate"     // they are moved before the node goes, and come back
)

// CRS is datacenter.cfg's crs: how the scheduler works.
type CRS struct {
	// Mode is basic, static or dynamic.
	Mode             string
	RebalanceOnStart bool
	AutoRebalance    bool
	// Threshold and Margin are fractions; the file has percent.
	Threshold, Margin float64
	// HoldRounds is the hold duration in rounds of Proxmox VE's manager; see [CRS.Hold].
	HoldRounds float64
	// Method is bruteforce or topsis.
	Method string
}

// HoldRound is the time that one round of the hold duration stands for: Proxmox VE's manager looks every 10 s by its
// manual and every 20 s in its simulator. The longer one moves nothing needlessly.
const HoldRound = 20 * time.Second

// Hold is how long an imbalance must last.
func (c CRS) Hold() time.Duration { return time.Duration(c.HoldRounds * float64(HoldRound)) }

// DatacenterHA is what datacenter.cfg says about HA.
type DatacenterHA struct {
	ShutdownPolicy ShutdownPolicy
	CRS            CRS
}

// DefaultDatacenterHA is what an empty datacenter.cfg means.
func DefaultDatacenterHA() DatacenterHA {
	return DatacenterHA{
		ShutdownPolicy: ShutdownConditional,
		CRS:            CRS{Mode: "basic", Threshold: 0.3, Margin: 0.1, HoldRounds: 3, Method: "bruteforce"},
	}
}
