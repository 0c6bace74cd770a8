// Package ha decides about guests that are HA resources. It holds two state
// machines: [State] is the manager's, of which one in the cluster is active and which
// takes the guests of a lost node to others; [Worker] is each node's own, which keeps the guests under
// its node's path in the state that was asked for.
//
// Both are pure: Step(now, event) → state, actions. The agent feeds them with views of the store, carries out
// the actions, and feeds back what became of each one. They know nothing of how liveness is found out (core/lease), how a
// guest starts, or how a migration runs (core/migrate).
//
// Invariant: no action is safe because of what a state machine believes; each is safe because the transaction that
// carries it out compares what the decision rests on (see Compares at each action, and DESIGN.md). So a stale view, a second manager, and an action
// carried out late or twice do no harm.
//
// Start reading with [View] and [State.Step], then [LocalView] and [Worker.Step].
package ha
