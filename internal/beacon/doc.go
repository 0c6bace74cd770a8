// Package beacon tells the other members twice a second, on both networks, which guests run here, and raises an
// alarm when a guest runs on two nodes. It also knows how long each member has been silent, for whoever is about
// to shoot it.
//
// It is the shell of internal/core/beacon: sockets, the clock, the file of alarms. It decides nothing by itself and
// stops no guest. DESIGN.md says what the protocol promises, what it costs and what it cannot see.
//
// Invariants:
//   - a datagram leaves and arrives by the interface that has the network's address, or not at all, so that
//     a cut network shows as one;
//   - an alarm is in the file before the callback hears of it, and leaves it only by [Beacon.Acknowledge];
//   - after the context has ended and [Beacon.Wait] returned, no goroutine and no socket is left.
//
// An agent wires it so, src being its own type:
//
//	b, err := beacon.Start(ctx, beacon.Config{
//		Node: "n1", Boot: bootID, Addrs: [2]netip.Addr{mgmt, cluster}, StateDir: paths.State,
//		Source:  src, // Running, Members, Epoch, Keys: answers from memory
//		OnAlarm: func(a beacon.Alarm) { health.Critical("double-run", a.String()) },
//		Log:     log,
//	})
//	if err != nil {
//		return fmt.Errorf("start beacons: %w", err)
//	}
//	defer b.Wait() // after ctx was cancelled
//
//	if s, ok := b.Heard("n2"); ok {
//		member.Heard = min(sinceRenewal, s.Any) // for fencing
//	}
//
// Start reading with [Config], [Source] and [Start].
package beacon
