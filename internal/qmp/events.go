package qmp

import "context"

// node is one event in a list that grows at its tail. A subscription holds the
// node it has to deliver next, so what everybody has read is garbage, and a slow
// reader costs memory and nothing else.
type node struct {
	ready chan struct{} // closed when event and next are set, or over is
	event Event
	next  *node
	over  bool
}

func newNode() *node { return &node{ready: make(chan struct{})} }

func (n *node) end() {
	n.over = true
	close(n.ready)
}

// publish appends ev; c.mu is held.
func (c *Conn) publish(ev Event) {
	if c.err != nil {
		return
	}
	n := c.tail
	n.event, n.next = ev, newNode()
	c.tail = n.next
	close(n.ready)
}

// Subscribe returns a channel with every event that arrives from now on, in
// order and without a loss: what is not received yet is kept, however much it
// is. The channel is closed when ctx ends, on Close, and after the last event of
// a connection that QEMU ended. End ctx when no longer receiving.
//
// An event says that something changed: subscribe first, then ask for the state.
func (c *Conn) Subscribe(ctx context.Context) <-chan Event {
	out := make(chan Event)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		close(out)
		return out
	}
	c.wg.Add(1)
	go c.deliver(ctx, c.tail, out)
	return out
}

func (c *Conn) deliver(ctx context.Context, n *node, out chan<- Event) {
	defer c.wg.Done()
	defer close(out)
	for {
		select {
		case <-n.ready:
		case <-ctx.Done():
			return
		case <-c.closed:
			return
		}
		if n.over {
			return
		}
		select {
		case out <- n.event:
		case <-ctx.Done():
			return
		case <-c.closed:
			return
		}
		n = n.next
	}
}
