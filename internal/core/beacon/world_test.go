package beacon_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
)

const (
	ms  = time.Millisecond
	sec = time.Second
)

func secret(id uint32) beacon.Key {
	return beacon.Key{ID: id, Secret: []byte(fmt.Sprintf("%032d", id))}
}

// truth is a run as it really was, in true time. The node's agent goes on believing in it for lag.
type truth struct {
	node     string
	vmid     model.VMID
	from, to time.Duration
	lag      time.Duration
	revision int64
}

// sleep is a time in which nothing of a node runs: neither its agent nor its guests. If stops, its clock does not either.
type sleep struct {
	from, to time.Duration
	stops    bool
}

// machine is a node of the simulated world.
type machine struct {
	name     string
	boot     string
	offset   time.Duration
	rate     float64
	sleeps   []sleep
	recorder *beacon.Recorder
	detector *beacon.Detector
	seq      uint64
	looks    int
	truths   []truth
}

// clock is what the node's clock shows at a true time.
func (m *machine) clock(t time.Duration) time.Duration {
	lost := time.Duration(0)
	for _, s := range m.sleeps {
		if s.stops && t > s.from {
			lost += min(t, s.to) - s.from
		}
	}
	return m.offset + time.Duration(float64(t-lost)*m.rate)
}

// awakeAt is when the node next does something that is due at t.
func (m *machine) awakeAt(t time.Duration) time.Duration {
	for _, s := range m.sleeps {
		if t >= s.from && t < s.to {
			return s.to
		}
	}
	return t
}

// happening is something that is due.
type happening struct {
	at  time.Duration
	nth int // keeps those of one instant in order
	do  func(t time.Duration)
}

// network is how datagrams fare.
type network struct {
	delay time.Duration // each takes a random time up to this
	least time.Duration // and at least this
	loss  float64
	twice float64
	// cut says whether a datagram is lost for another reason.
	cut func(t time.Duration, from, to string, n beacon.Network) bool
}

// world is a cluster in true time: nodes with clocks of their own, which exchange sealed datagrams.
type world struct {
	t        *testing.T
	rng      *rand.Rand
	net      network
	machines []*machine
	truths   []truth
	due      []happening
	count    int
	alarms   map[string][]beacon.Alarm // by the node that raised them
}

func newWorld(t *testing.T, seed uint64, nodes int, net network) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), net: net, alarms: map[string][]beacon.Alarm{}}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		m := &machine{
			name: name, boot: "boot-of-" + name, recorder: &beacon.Recorder{},
			offset: time.Duration(w.rng.Int64N(int64(1000 * sec))), rate: 1 + (w.rng.Float64()-0.5)/500, // ±1000 ppm
		}
		w.machines = append(w.machines, m)
	}
	return w
}

func (w *world) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(w.rng.Int64N(int64(d)))
}

// at does something at a true time, or when the node wakes up.
func (w *world) at(m *machine, at time.Duration, do func(t time.Duration)) {
	w.count++
	h := happening{at: m.awakeAt(at), nth: w.count, do: do}
	i, _ := slices.BinarySearchFunc(w.due, h, func(a, b happening) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		return a.nth - b.nth
	})
	w.due = slices.Insert(w.due, i, h)
}

// run lets the world run up to a true time.
func (w *world) run(until time.Duration) {
	for _, m := range w.machines {
		w.boot(m, 0)
		m.truths = slices.DeleteFunc(slices.Clone(w.truths), func(r truth) bool { return r.node != m.name })
		w.at(m, w.upTo(beacon.Beat), func(t time.Duration) { w.look(m, t) })
	}
	for len(w.due) > 0 && w.due[0].at < until {
		h := w.due[0]
		w.due = w.due[1:]
		h.do(h.at)
	}
}

// boot gives a node's agent an empty memory.
func (w *world) boot(m *machine, t time.Duration) {
	now := m.clock(t)
	m.detector = beacon.NewDetector(now, m.name, m.boot, nil)
	m.recorder = &beacon.Recorder{}
	m.seq = uint64(now.Microseconds())
	var names []string
	for _, o := range w.machines {
		names = append(names, o.name)
	}
	m.detector.Step(now, beacon.Members{Names: names})
}

func (w *world) look(m *machine, t time.Duration) {
	m.recorder.Sample(m.clock(t), w.running(m, t))
	w.step(m, t, beacon.Look{Claims: m.recorder.All()})
	if m.looks++; m.looks%2 == 0 {
		w.beat(m, t)
	}
	w.at(m, t+beacon.SampleEvery+w.upTo(5*ms), func(t time.Duration) { w.look(m, t) })
}

// running is what the node's agent believes.
func (w *world) running(m *machine, t time.Duration) []beacon.Guest {
	var out []beacon.Guest
	for _, r := range m.truths {
		if t >= r.from && t < r.to+r.lag {
			out = append(out, beacon.Guest{VMID: r.vmid, Epoch: 1, Revision: r.revision, Since: m.clock(r.from)})
		}
	}
	return out
}

func (w *world) beat(m *machine, t time.Duration) {
	claims := m.recorder.Beat()
	m.seq++
	for _, to := range w.machines {
		if to == m {
			continue
		}
		for n := range beacon.Network(2) {
			data := beacon.Seal(beacon.Message{
				Network: n, From: m.name, To: to.name, Boot: m.boot, Epoch: 1, Seq: m.seq, Sent: m.clock(t), Sampled: m.recorder.Sampled(),
				Echo: m.detector.Echo(to.name), Claims: claims,
			}, secret(1))
			if len(data) > beacon.MaxDatagram {
				w.t.Fatalf("a datagram of %d bytes", len(data))
			}
			w.send(t, m, to, n, data)
		}
	}
}

func (w *world) send(t time.Duration, from, to *machine, n beacon.Network, data []byte) {
	if w.rng.Float64() < w.net.loss || w.net.cut != nil && w.net.cut(t, from.name, to.name, n) {
		return
	}
	copies := 1
	if w.rng.Float64() < w.net.twice {
		copies = 2
	}
	for range copies {
		w.at(to, t+w.net.least+w.upTo(w.net.delay-w.net.least), func(t time.Duration) {
			m, err := beacon.Open(data, []beacon.Key{secret(1)})
			if err != nil {
				w.t.Fatal(err)
			}
			w.step(to, t, beacon.Datagram{Network: n, Message: m})
		})
	}
}

func (w *world) step(m *machine, t time.Duration, ev beacon.Event) {
	w.alarms[m.name] = append(w.alarms[m.name], m.detector.Step(m.clock(t), ev)...)
}

// raised lists the alarms by the nodes that raised them.
func (w *world) raised() []string {
	var out []string
	for _, m := range w.machines {
		for _, a := range w.alarms[m.name] {
			out = append(out, m.name+": "+a.String())
		}
	}
	return out
}

// anyNetwork draws a network that is slow, lossy, out of order and doubles datagrams, each by a random amount.
func anyNetwork(rng *rand.Rand) network {
	delay := time.Duration(rng.Int64N(int64(sec))) + ms
	n := network{delay: delay, loss: 0.3 * rng.Float64(), twice: 0.1 * rng.Float64()}
	if rng.IntN(3) == 0 {
		n.least = time.Duration(rng.Int64N(int64(delay))) // slow both ways: clocks stay uncertain
	}
	return n
}
