package beacon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	core "sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// DefaultPort is the UDP port of both networks: the next after the API's, which TCP alone uses.
const DefaultPort = 8007

// linkEvery is how many looks pass between two looks at the networks' addresses: 2 s.
const linkEvery = 8

// What the pure half thinks with, for callers.
type (
	// Guest is a guest that runs here now.
	Guest = core.Guest
	// Key is a secret of the cluster's, at least core's MinSecret bytes, and its number.
	Key = core.Key
	// Silence says how long a member was not heard of.
	Silence = core.Silence
)

// Member is a member of the cluster and its addresses, by core.Network. An address that is not valid, or that is the same as the
// first, is not used.
type Member struct {
	Name  string
	Addrs [2]netip.Addr
}

// Source is what a node says of itself. All methods answer from memory: they are called up to four times a second, and
// while one blocks the node is silent.
type Source interface {
	// Running are the guests whose QEMU runs the guest at this moment: not frozen, not paused, not one that waits for a
	// migration or was never continued, not the source of one that completes. What is not certain is left out.
	Running(ctx context.Context) []Guest
	// Members are all members; this node may be among them.
	Members() []Member
	// Epoch is that of this node's lease.
	Epoch() uint64
	// Keys are the secrets that are accepted, two at most. The first signs, so a new one is accepted everywhere before it is put first.
	Keys() []Key
}

// Config says who beacons. All fields without another word are needed.
type Config struct {
	Node string
	Boot string // boot id of the machine
	// Addrs are this node's addresses by core.Network. The second may be the same as the first; then there is one network.
	Addrs [2]netip.Addr
	// Port is that of all members; 0 means DefaultPort.
	Port uint16
	// StateDir is where alarms are kept, in double-runs.json.
	StateDir string
	Source   Source
	// OnAlarm is called once for each alarm, also, before Start returns, for those that an earlier life of the agent left
	// unacknowledged. It returns soon and calls nothing of the Beacon. It may be nil.
	OnAlarm func(Alarm)
	Log     *slog.Logger
}

func (c Config) validate() error {
	if err := core.Validate(c.Node, c.Boot); err != nil {
		return err
	}
	switch {
	case !c.Addrs[core.Management].IsValid():
		return model.Invalidf("mgmt", "beacons need the node's address in the management network")
	case c.StateDir == "":
		return model.Invalidf("state-dir", "beacons need a directory for alarms")
	case c.Source == nil || c.Log == nil:
		return model.Invalidf("source", "beacons need a source and a log")
	}
	return nil
}

// Counters count datagrams and what became of them. They only rise.
type Counters struct {
	core.Counters
	// Sent and SendErrors are datagrams that the kernel took and refused.
	Sent, SendErrors uint64
	// Malformed, UnknownKey and Forged were not even read.
	Malformed, UnknownKey, Forged uint64
}

// Beacon is a node's beacon. It is safe for concurrent use.
type Beacon struct {
	cfg   Config
	file  string
	links [2]*link
	wg    sync.WaitGroup

	saving sync.Mutex // held while the file is written, before mu

	mu       sync.Mutex
	detector *core.Detector
	recorder core.Recorder
	keys     []Key
	members  []Member
	at       map[string]time.Time // when each alarm was raised
	unsaved  bool                 // the file could not be written
	seq      uint64
	counters Counters
}

// Start begins to beacon and to listen, until ctx is done. An address that no interface has yet is waited
// for. Errors: model.ErrInvalid for the configuration, model.ErrBusy if another program has the port, what the
// file of alarms says if it cannot be read. After an error nothing is left.
func Start(ctx context.Context, cfg Config) (*Beacon, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("start beacons: %w", err)
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	b := &Beacon{cfg: cfg, file: filepath.Join(cfg.StateDir, "double-runs.json"), at: map[string]time.Time{}}
	alarms, err := loadAlarms(b.file)
	if err != nil {
		return nil, fmt.Errorf("start beacons: %w", err)
	}
	now := sys.BootTime()
	b.seq = uint64(now.Microseconds()) // above all that an earlier life of the agent used in this boot
	latched := make([]core.Alarm, len(alarms))
	for i, a := range alarms {
		latched[i], b.at[a.ID] = a.Alarm, a.At
	}
	b.detector = core.NewDetector(now, cfg.Node, cfg.Boot, latched)
	for n := range b.links {
		b.links[n] = &link{b: b, network: core.Network(n), addr: cfg.Addrs[n]}
		if n > 0 && cfg.Addrs[n] == cfg.Addrs[0] {
			b.links[n].addr = netip.Addr{}
		}
	}
	b.look(ctx) // whose datagrams with which keys are read from the first one on
	for _, l := range b.links {
		if err := l.ensure(ctx); errors.Is(err, model.ErrBusy) {
			b.close()
			return nil, fmt.Errorf("start beacons: %w", err)
		}
	}
	for _, a := range alarms {
		b.tell(a)
	}
	b.wg.Go(func() { b.loop(ctx) })
	return b, nil
}

// Wait returns when everything has ended, which takes Start's context to be done.
func (b *Beacon) Wait() { b.wg.Wait() }

// close ends the sockets and waits for their readers.
func (b *Beacon) close() {
	for _, l := range b.links {
		l.shut()
	}
}

func (b *Beacon) loop(ctx context.Context) {
	defer b.close()
	ticker := time.NewTicker(core.SampleEvery)
	defer ticker.Stop()
	for n := 0; ; n++ {
		b.look(ctx)
		if n%2 == 0 {
			b.beat()
		}
		if n%linkEvery == linkEvery-1 {
			for _, l := range b.links {
				_ = l.ensure(ctx) // it is kept in the link's status, and tried again
			}
			b.saveAgain()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look asks the source. The time is read before: what the answer says was true then or later, however long this process
// is kept from running in between.
func (b *Beacon) look(ctx context.Context) {
	at := sys.BootTime()
	running, members, keys := b.cfg.Source.Running(ctx), b.cfg.Source.Members(), b.cfg.Source.Keys()
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name
	}
	b.mu.Lock()
	b.members = members
	b.setKeys(keys)
	b.recorder.Sample(at, running)
	now := sys.BootTime()
	b.detector.Step(now, core.Members{Names: names})
	raised := b.detector.Step(now, core.Look{Claims: b.recorder.All()})
	b.mu.Unlock()
	b.raise(raised)
}

// setKeys takes over the keys that are good; b.mu is held.
func (b *Beacon) setKeys(keys []Key) {
	var good []Key
	for _, k := range keys[:min(2, len(keys))] {
		if len(k.Secret) >= core.MinSecret {
			good = append(good, k)
		}
	}
	b.keys = good
}

// beat sends one datagram to each member on each network.
func (b *Beacon) beat() {
	b.mu.Lock()
	b.seq++
	keys, members := b.keys, b.members
	m := core.Message{
		From: b.cfg.Node, Boot: b.cfg.Boot, Seq: b.seq, Sampled: b.recorder.Sampled(), Claims: b.recorder.Beat(),
	}
	b.mu.Unlock()
	m.Epoch = b.cfg.Source.Epoch()
	for _, l := range b.links {
		if len(keys) == 0 {
			l.setErr(fmt.Errorf("send beacons: the cluster has no key of at least %d bytes", core.MinSecret))
			continue
		}
		l.sendAll(m, members, keys[0])
	}
}

// take reads a datagram that arrived.
func (b *Beacon) take(n core.Network, data []byte) {
	b.mu.Lock()
	keys := b.keys
	b.mu.Unlock()
	m, err := core.Open(data, keys)
	b.mu.Lock()
	var raised []core.Alarm
	switch {
	case errors.Is(err, core.ErrUnknownKey):
		b.counters.UnknownKey++
	case errors.Is(err, core.ErrForged):
		b.counters.Forged++
	case err != nil:
		b.counters.Malformed++
	default:
		raised = b.detector.Step(sys.BootTime(), core.Datagram{Network: n, Message: m})
	}
	b.mu.Unlock()
	b.raise(raised)
}

// Heard is the time since the last authentic datagram of a member arrived, as long as this process was awake to hear it; ok is
// false for this node and for whoever is no member.
func (b *Beacon) Heard(node string) (s Silence, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.detector.Silence(sys.BootTime(), node)
}

// Counters returns what was counted so far.
func (b *Beacon) Counters() Counters {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.counters
	c.Counters = b.detector.Counters()
	return c
}

// Networks says how both networks are.
func (b *Beacon) Networks() [2]NetworkStatus {
	return [2]NetworkStatus{b.links[core.Management].status(), b.links[core.Cluster].status()}
}
