//go:build room

package roomtest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/lab"
)

func TestACutNetworkCostsAtMostASecondOfWritesAndNoElection(t *testing.T) {
	r := open(t)
	r.Must("n1", "vm create 118 --name idle --memory 64")
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 118") })
	leader := r.Cluster("n1").Leader
	for _, c := range []struct {
		name    string
		nodes   []string
		network lab.Network
	}{
		{"the management switch", nodes(), lab.Mgmt},
		{"the cluster switch", nodes(), lab.Cluster},
		// Last: when a node's own cable returns, the connections that it made itself stay without their second path.
		{"the leader's cluster cable", []string{leader}, lab.Cluster},
	} {
		r.AwaitPaths()
		// The renewals go on under the writes; who missed too many would be shown as offline.
		w := r.startWrites("n1")
		watch := r.watchQuorum()
		r.Throughout(time.Second, "", nil)
		for _, n := range c.nodes {
			r.CutNetwork(n, c.network)
		}
		r.Throughout(4*time.Second, "", nil)
		for _, n := range c.nodes {
			r.Plug(n)
		}
		r.Throughout(2*time.Second, "", nil)
		longest, count, err := w.end()
		t.Logf("%s cut: %d writes, the longest %v", c.name, count, longest.Round(time.Millisecond))
		if err != nil || longest > time.Second {
			t.Errorf("%s cut: the longest write took %v, error %v", c.name, longest, err)
		}
		for _, problem := range watch() {
			t.Errorf("%s cut: %s", c.name, problem)
		}
		if now := r.Cluster("n1").Leader; now != leader {
			t.Errorf("%s cut: the leader was %s and is %s", c.name, leader, now)
		}
	}
}

// AwaitPaths waits until every connection of the store goes over both networks.
func (r *room) AwaitPaths() {
	r.t.Helper()
	for _, n := range nodes() {
		took := r.Eventually("the store's connections of "+n+" use both networks", 10*time.Second, func() error {
			out := r.Shell(n, "ss -HtnM state established '( sport = :2380 or dport = :2380 )'")
			count := map[string]int{}
			for line := range strings.Lines(out) {
				switch f := strings.Fields(line); {
				case f[0] == "mptcp":
					count["connections"]++
				case strings.HasPrefix(f[3], "10.10.1."):
					count["management paths"]++
				default:
					count["cluster paths"]++
				}
			}
			if c := count["connections"]; c < 4 || count["management paths"] < c || count["cluster paths"] < c {
				return fmt.Errorf("%v", count)
			}
			return nil
		})
		r.t.Logf("%s has both paths for all connections after %v", n, took.Round(time.Millisecond))
	}
}

// writePace is the time between two writes.
const writePace = 50 * time.Millisecond

// writer changes a guest's note again and again.
type writer struct {
	cancel context.CancelFunc
	done   chan struct{}

	longest time.Duration
	count   int
	err     error // the first one
}

func (r *room) startWrites(node string) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{cancel: cancel, done: make(chan struct{})}
	c := r.API(node)
	go func() {
		defer close(w.done)
		tick := time.NewTicker(writePace)
		defer tick.Stop()
		for ctx.Err() == nil {
			begin := time.Now()
			err := c.SetGuestConfig(context.Background(), node, 118, map[string]string{"description": fmt.Sprint(w.count)}, nil, "")
			w.count++
			w.longest = max(w.longest, time.Since(begin))
			if err != nil && w.err == nil {
				w.err = fmt.Errorf("write %d: %w", w.count, err)
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	return w
}

// end stops the writer and returns its longest write, the number of its writes, and the first error.
func (w *writer) end() (longest time.Duration, count int, err error) {
	w.cancel()
	<-w.done
	return w.longest, w.count, w.err
}

// watchQuorum asks every node ten times a second who leads and whether there is a quorum, until the function that it returns is called, which says what
// was wrong.
func (r *room) watchQuorum() (stop func() []string) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var wg sync.WaitGroup
	problems := map[string]bool{}
	leader := r.Cluster("n1").Leader
	for _, n := range nodes() {
		c := r.API(n)
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				st, err := c.ClusterStatus(context.Background())
				mu.Lock()
				if err != nil {
					problems[n+": "+err.Error()] = true
				} else if !st.Quorate || st.Leader != leader || st.TotalVotes != len(nodes()) {
					problems[fmt.Sprintf("%s: quorate %v, leader %q, %d votes", n, st.Quorate, st.Leader, st.TotalVotes)] = true
				}
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	return func() []string {
		cancel()
		wg.Wait()
		var out []string
		for p := range problems {
			out = append(out, p)
		}
		return out
	}
}
