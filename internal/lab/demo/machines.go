package demo

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
)

// machines reaches the nodes' agents by the socket that a person on the node would use. A node's files are
// seen through its init process, so a new boot needs refresh.
type machines struct {
	room *lab.Room

	mu      sync.Mutex
	pids    map[string]int            // of the nodes' inits, on the host; guarded by mu
	clients map[string]*client.Client // guarded by mu
}

func newMachines(ctx context.Context, r *lab.Room) (*machines, error) {
	m := &machines{room: r, pids: map[string]int{}, clients: map[string]*client.Client{}}
	return m, m.refresh(ctx)
}

// refresh looks which nodes are on.
func (m *machines) refresh(ctx context.Context) error {
	st, err := m.room.Status(ctx)
	if err != nil {
		return fmt.Errorf("look at the room: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range st.Nodes {
		if m.pids[n.Node] == n.PID && m.clients[n.Node] != nil {
			continue
		}
		if c := m.clients[n.Node]; c != nil {
			c.Close()
		}
		m.pids[n.Node] = n.PID
		m.clients[n.Node] = client.New(client.Options{Socket: filepath.Join(rootOf(n.PID), client.DefaultSocket)})
	}
	return nil
}

// rootOf is a node's root directory, seen from the host.
func rootOf(pid int) string { return fmt.Sprintf("/proc/%d/root", pid) }

// path is where the host sees a file of a node.
func (m *machines) path(node, file string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return filepath.Join(rootOf(m.pids[node]), file)
}

// on is the client of a node's agent.
func (m *machines) on(node string) *client.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clients[node]
}

func (m *machines) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.pids))
}

func (m *machines) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.clients {
		c.Close()
	}
}

// askTimeout bounds one question to an agent in a loop that asks again.
const askTimeout = 2 * time.Second

// status asks one node about the cluster.
func (m *machines) status(ctx context.Context, node string) (api.ClusterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return m.on(node).ClusterStatus(ctx)
}

// complete says whether node sees a cluster of all machines, quorate and with a leader and a manager; why not otherwise.
func (m *machines) complete(ctx context.Context, node string) error {
	st, err := m.status(ctx, node)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", node, err)
	case !st.Quorate || st.Leader == "" || st.Manager == "":
		return fmt.Errorf("%s: quorate %v, leader %q, manager %q", node, st.Quorate, st.Leader, st.Manager)
	case len(st.Nodes) != len(m.names()):
		return fmt.Errorf("%s sees %d nodes", node, len(st.Nodes))
	}
	for _, n := range st.Nodes {
		if !n.Online || n.Fenced {
			return fmt.Errorf("%s sees %s: online %v, fenced %v", node, n.Name, n.Online, n.Fenced)
		}
	}
	return nil
}

// allComplete says whether all nodes say so.
func (m *machines) allComplete(ctx context.Context) error {
	for _, n := range m.names() {
		if err := m.complete(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// where is the node that owns a guest, as node sees it.
func (m *machines) where(ctx context.Context, node string, id model.VMID) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	g, err := m.on(node).Guest(ctx, id)
	return g.Node, err
}

// await asks until check is content. The error at the end has the last reason.
func await(ctx context.Context, what string, limit, every time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		case <-tick.C:
		}
	}
}

// rest lets time pass.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
