package agent

import (
	"maps"
	"sync"

	"sauh.dev/sauh/internal/core/model"
)

// guestLocks serialises the operations on each guest of this node.
type guestLocks struct {
	// released is told after each unlock.
	released func()
	mu       sync.Mutex
	held     map[model.VMID]string // what holds it; guarded by mu
}

func newGuestLocks(released func()) *guestLocks {
	return &guestLocks{released: released, held: map[model.VMID]string{}}
}

// tryLock takes the guest's lock for an operation, or says which one has it.
func (l *guestLocks) tryLock(id model.VMID, what string) (unlock func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if by, ok := l.held[id]; ok {
		return nil, model.Errorf(model.ErrBusy, "guest %s is busy (%s): wait until that is done", id, by)
	}
	l.held[id] = what
	return func() {
		l.mu.Lock()
		delete(l.held, id)
		l.mu.Unlock()
		l.released()
	}, nil
}

// holders maps each locked guest to what holds it.
func (l *guestLocks) holders() map[model.VMID]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.held)
}
