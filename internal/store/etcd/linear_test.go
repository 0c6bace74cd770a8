package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"sauh.dev/sauh/internal/store"
)

// serving has a node answer clients' operations through its store, on a socket in the file system, which no network fault touches.
type serving struct {
	Socket string
	// LoseEach: of so many commits the answer of one is lost on the way to the store's own client.
	LoseEach int
	Seed     uint64
}

// serveStore answers until ctx is done.
func serveStore(ctx context.Context, wg *sync.WaitGroup, s *Server, v serving) error {
	rng := rand.New(rand.NewPCG(v.Seed, 0))
	var mu sync.Mutex
	s.commit = func(ctx context.Context, t etcdTxn) (*txnResponse, error) {
		resp, err := s.commitOnce(ctx, t)
		mu.Lock()
		lost := err == nil && rng.IntN(v.LoseEach) == 0
		mu.Unlock()
		if lost {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return resp, err
	}
	if err := os.Remove(v.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", v.Socket)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			wg.Go(func() {
				defer stop()
				defer conn.Close()
				answerClient(ctx, s, conn)
			})
		}
	})
	return nil
}

func answerClient(ctx context.Context, s *Server, conn net.Conn) {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var a asked
		if in.Decode(&a) != nil || out.Encode(carryOut(ctx, s, a)) != nil {
			return
		}
	}
}

// carryOut does an operation through the store's interface.
func carryOut(ctx context.Context, s store.Store, a asked) answered {
	if a.Read {
		kv, err := s.Get(ctx, a.Key, store.Linearizable)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return answered{Unknown: true}
		}
		return answered{Value: string(kv.Value), Revision: kv.ModRevision}
	}
	op := store.Put(a.Key, []byte(a.Value))
	if a.Value == "" {
		op = store.Delete(a.Key)
	}
	revision, err := s.Txn(ctx, store.Txn{If: []store.Cond{{Key: a.Key, Revision: a.Expect}}, Then: []store.Op{op}})
	switch {
	case err == nil:
		return answered{Revision: revision}
	case errors.Is(err, store.ErrConflict):
		return answered{Conflict: true}
	}
	return answered{Unknown: true}
}

// client works on all keys through one member at a time, and writes down what it asked and heard.
type client struct {
	number  int
	rng     *rand.Rand
	sockets []string
	began   time.Time
	conn    net.Conn
	known   map[string]int64 // the revision that it last heard of, by key
	values  int
	seen    history
}

// answerLimit is how long a client waits for one answer: a member that runs gives one within a second.
const answerLimit = 1200 * time.Millisecond

// ask does one operation at a member.
func (c *client) ask(a asked) answered {
	call := time.Since(c.began).Nanoseconds()
	out, err := c.exchange(a)
	if err != nil {
		out = answered{Unknown: true}
		if c.conn != nil {
			_ = c.conn.Close()
			c.conn = nil
		}
	}
	c.seen = append(c.seen, porcupine.Operation{ClientId: c.number, Input: a, Output: out, Call: call, Return: time.Since(c.began).Nanoseconds()})
	switch {
	case out.Unknown, out.Conflict:
	case !a.Read && a.Value == "":
		c.known[a.Key] = 0
	default:
		c.known[a.Key] = out.Revision
	}
	return out
}

func (c *client) exchange(a asked) (out answered, err error) {
	if c.conn == nil {
		if c.conn, err = net.Dial("unix", c.sockets[c.rng.IntN(len(c.sockets))]); err != nil {
			c.conn = nil
			return out, err
		}
	}
	if err := c.conn.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return out, err
	}
	if err := json.NewEncoder(c.conn).Encode(a); err != nil {
		return out, err
	}
	if c.rng.IntN(100) == 0 { // nobody hears the answer
		return out, net.ErrClosed
	}
	err = json.NewDecoder(c.conn).Decode(&out)
	return out, err
}

// work reads, writes, swaps and deletes until ctx is done; now and then it goes to another member.
func (c *client) work(ctx context.Context, keys []string) {
	for ctx.Err() == nil {
		key := keys[c.rng.IntN(len(keys))]
		value := func() string { c.values++; return fmt.Sprintf("%d.%d", c.number, c.values) }
		switch x := c.rng.IntN(100); {
		case x < 40:
			c.ask(asked{Key: key, Read: true})
		case x < 70: // a put: on whatever is there
			if at := c.ask(asked{Key: key, Read: true}); !at.Unknown {
				c.ask(asked{Key: key, Expect: at.Revision, Value: value()})
			}
		case x < 85: // a swap, of what was there when this client last looked
			c.ask(asked{Key: key, Expect: c.known[key], Value: value()})
		case x < 90:
			c.ask(asked{Key: key, Value: value()})
		case x < 95:
			if c.known[key] != 0 {
				c.ask(asked{Key: key, Expect: c.known[key]})
			}
		default:
			if c.conn != nil {
				_ = c.conn.Close()
				c.conn = nil
			}
		}
		pause := time.NewTimer(time.Duration(c.rng.IntN(6)) * time.Millisecond)
		<-pause.C
	}
}

// serve has a node answer the clients.
func (r *room) serve(t *testing.T, n *roomNode, sockets string, seed uint64) {
	t.Helper()
	n.must(t, nodeCommand{Serve: &serving{Socket: filepath.Join(sockets, n.cfg.Name), LoseEach: 40, Seed: seed}})
}

// unplug cuts a node off both networks, or plugs it in again.
func (r *room) unplug(t *testing.T, n *roomNode, out bool) {
	t.Helper()
	for k := range n.cfg.Addresses {
		link, err := r.wire.LinkByName(fmt.Sprintf("s%d%s", k+1, n.cfg.Name))
		if err == nil && out {
			err = r.wire.LinkSetDown(link)
		} else if err == nil {
			err = r.wire.LinkSetUp(link)
		}
		if err != nil {
			t.Fatalf("unplug %s: %v", n.cfg.Name, err)
		}
	}
}

// strike does one fault and heals it. Half of all faults strike the leader.
func (r *room) strike(t *testing.T, rng *rand.Rand, sockets string) string {
	t.Helper()
	i := rng.IntN(len(r.nodes))
	if answer, err := r.nodes[i].do(nodeCommand{}); err == nil && rng.IntN(2) == 0 {
		if lead := slices.IndexFunc(r.nodes, func(n *roomNode) bool { return n.cfg.Name == answer.Leader }); lead >= 0 {
			i = lead
		}
	}
	n, other := r.nodes[i], r.nodes[(i+1)%len(r.nodes)]
	lasts := time.Duration(100+rng.IntN(1700)) * time.Millisecond
	signal := func(n *roomNode, s syscall.Signal) {
		if err := n.cmd.Process.Signal(s); err != nil {
			t.Fatalf("%v to %s: %v", s, n.cfg.Name, err)
		}
	}
	kind := rng.IntN(5)
	switch kind {
	case 0:
		n.kill()
		wait(lasts / 2)
		r.power(t, n)
		n.must(t, nodeCommand{Start: &n.cfg})
		r.serve(t, n, sockets, rng.Uint64())
	case 1:
		signal(n, syscall.SIGSTOP)
		wait(lasts)
		signal(n, syscall.SIGCONT)
	case 2: // no quorum
		signal(n, syscall.SIGSTOP)
		signal(other, syscall.SIGSTOP)
		wait(lasts / 2)
		signal(other, syscall.SIGCONT)
		signal(n, syscall.SIGCONT)
	case 3:
		r.unplug(t, n, true)
		wait(lasts)
		r.unplug(t, n, false)
	default: // two that do not hear one another, and one of them stands still
		r.unplug(t, n, true)
		signal(other, syscall.SIGSTOP)
		wait(lasts / 2)
		signal(other, syscall.SIGCONT)
		r.unplug(t, n, false)
	}
	return []string{"killed", "paused", "two paused", "cut", "cut, another paused"}[kind]
}

// historySeed replays a run's choices; its times are never the same.
const historySeed = "SAUH_ETCD_TEST_SEED"

func TestTheStoresHistoryIsLinearizableWhileMembersAreKilledPausedAndCutOff(t *testing.T) {
	r := newRoom(t)
	seed, err := strconv.ParseUint(os.Getenv(historySeed), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("%s=%d", historySeed, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	r.start(t)
	dir, err := os.MkdirTemp("", "linear") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var sockets []string
	for _, n := range r.nodes {
		r.serve(t, n, dir, rng.Uint64())
		sockets = append(sockets, filepath.Join(dir, n.cfg.Name))
	}
	keys := []string{"h/a", "h/b", "h/c", "h/d"}
	began := time.Now()
	clients := make([]*client, 6)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range clients {
		clients[i] = &client{number: i, rng: rand.New(rand.NewPCG(seed, uint64(i+1))), sockets: sockets, began: began, known: map[string]int64{}}
		wg.Go(func() { clients[i].work(ctx, keys) })
	}
	faults := map[string]int{}
	for time.Since(began) < 9*time.Second {
		wait(time.Duration(rng.IntN(300)) * time.Millisecond)
		faults[r.strike(t, rng, dir)]++
	}
	cancel()
	wg.Wait()
	for _, key := range keys {
		eventually(t, "a read of "+key, 10*time.Second, func() bool { return !clients[0].ask(asked{Key: key, Read: true}).Unknown })
	}
	var h history
	for _, c := range clients {
		if c.conn != nil {
			_ = c.conn.Close()
		}
		h = append(h, c.seen...)
	}
	writes, unknown := h.sizes()
	t.Logf("%d operations, %d writes committed, %d of unknown outcome; faults: %v", len(h), writes, unknown, faults)
	if writes < 100 || unknown == 0 {
		t.Errorf("too little happened to say anything")
	}
	if got := h.check(); got != porcupine.Ok {
		t.Errorf("the history is %s", got)
	}
	if got := h.stale(t).check(); got != porcupine.Illegal {
		t.Errorf("with a stale read planted the history is %s", got)
	}
}

// sizes counts the writes that were committed, and what nobody knows the outcome of.
func (h history) sizes() (writes, unknown int) {
	for _, op := range h {
		in, out := op.Input.(asked), op.Output.(answered)
		switch {
		case out.Unknown:
			unknown++
		case !in.Read && !out.Conflict:
			writes++
		}
	}
	return writes, unknown
}

// stale is the history in which the last read of all finds the first value that was written to its key.
func (h history) stale(t *testing.T) history {
	t.Helper()
	s := slices.Clone(h)
	slices.SortFunc(s, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	last := len(s) - 1
	key, found := s[last].Input.(asked).Key, s[last].Output.(answered)
	for _, op := range s {
		in, out := op.Input.(asked), op.Output.(answered)
		if in.Key == key && !in.Read && in.Value != "" && !out.Unknown && !out.Conflict && out.Revision != found.Revision {
			s[last].Output = answered{Value: in.Value, Revision: out.Revision}
			return s
		}
	}
	t.Fatalf("nothing was written to %s", key)
	return nil
}
