package move

import (
	"sync"

	"sauh.dev/sauh/internal/core/model"
)

// Claims says which guests of this node are being moved or recovered, so that at
// most one of Source, Target and Recover handles a guest, and whoever else acts on guests can keep
// away. One agent has one. The zero value is ready.
type Claims struct {
	mu    sync.Mutex
	taken map[model.VMID]bool
}

// Claim takes the guest until release is called; model.ErrBusy if it is taken.
func (c *Claims) Claim(id model.VMID) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken[id] {
		return nil, model.Errorf(model.ErrBusy, "guest %s is being moved: wait for that task to end", id)
	}
	if c.taken == nil {
		c.taken = map[model.VMID]bool{}
	}
	c.taken[id] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.taken, id)
	}, nil
}

// Busy reports whether the guest is taken.
func (c *Claims) Busy(id model.VMID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken[id]
}
