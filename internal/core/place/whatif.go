package place

// Tolerance is how many node failures the cluster can take.
type Tolerance struct {
	// Nodes is the largest number such that, whichever so many of the nodes online fail, all HA guests find a place.
	Nodes int
	// Exact is false if more failures were not tried, because there are too many combinations: then Nodes is a lower bound.
	Exact bool
	// Failed are the first nodes found whose loss the cluster does not survive whole, Nodes+1 of them, and Unplaced the
	// guests that would not come back. Empty if not Exact, and if every node but one may fail.
	Failed   []string
	Unplaced []Placement
}

// FailuresToTolerate counts the failures that the cluster can take now. budget bounds the work, in placements of one guest;
// 0 means [DefaultBudget].
func FailuresToTolerate(c Cluster, budget int) Tolerance {
	return Tolerance{}
}

// DefaultBudget is about a second of work at 256 nodes.
const DefaultBudget = 100_000

// WhatIf plans as if the nodes named were lost at once: where their HA guests would go, in the order of the plan, and why
// those with Node "" would not come back.
func WhatIf(c Cluster, lost ...string) []Placement {
	return nil
}

// Admit says whether the cluster could still take so many node failures if r were placed where Choose puts it; "" if so,
// else a sentence.
func Admit(r Request, c Cluster, failures int) string {
	return ""
}
