package agent

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/beacon"
	corebeacon "sauh.dev/sauh/internal/core/beacon"
	corefence "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// beacons tells the other members which guests run here and listens to them: for a guest that runs twice, and for how long each
// member has been silent. It is a beacon.Source.
type beacons struct {
	node   string
	log    *slog.Logger
	mirror *mirror.Mirror
	roster roster
	procs  *procs
	lease  leaseholder
	sender atomic.Pointer[beacon.Beacon] // nil until it runs
	why    atomic.Pointer[string]        // why it does not run, nil if it does
	wg     sync.WaitGroup

	mu   sync.Mutex
	mute map[model.VMID]time.Time // those whose QEMU did not answer in time are not asked before; guarded by mu
}

const (
	// lookLimit bounds the questions to the guests' QEMUs, of which there are four a second: who does not answer is left out.
	lookLimit = 100 * time.Millisecond
	// lookRest is how long a QEMU that did not answer is left in peace.
	lookRest = 5 * time.Second
	// startAgain is how often it is tried to begin where that failed: a port that is in use or a file that cannot be read.
	startAgain = 5 * time.Second
)

// start begins to send and to listen until ctx is done. Without beacons the node does everything else, so it goes on trying where it cannot, and
// says so among the problems.
func (b *beacons) start(ctx context.Context, boot, dir string, addresses []netip.Addr) {
	cfg := beacon.Config{Node: b.node, Boot: boot, StateDir: dir, Source: b, Log: b.log.With("part", "beacon"), OnAlarm: func(a beacon.Alarm) {
		b.log.Error("A GUEST RUNS TWICE", "vmid", a.VMID, "alarm", a.String())
	}}
	if len(addresses) > 0 {
		cfg.Addrs = [2]netip.Addr{addresses[len(addresses)-1], addresses[0]} // management first
	}
	if b.begin(ctx, cfg) {
		return
	}
	b.wg.Go(func() {
		for ctx.Err() == nil {
			sleep(ctx, startAgain)
			if ctx.Err() == nil && b.begin(ctx, cfg) {
				return
			}
		}
	})
}

// begin reports whether the beacons run now; why not is logged once.
func (b *beacons) begin(ctx context.Context, cfg beacon.Config) bool {
	s, err := beacon.Start(ctx, cfg)
	if err != nil {
		why := err.Error()
		if old := b.why.Swap(&why); old == nil || *old != why {
			b.log.Error("no beacons: nobody would see a guest run twice here, and no node is shot by this one", "err", err)
		}
		return false
	}
	b.sender.Store(s)
	b.why.Store(nil)
	return true
}

// found raises the alarm about a QEMU that runs a guest of owner's here; the caller ends it.
func (b *beacons) found(id model.VMID, owner string, started time.Time) {
	b.log.Error("A GUEST RAN HERE THAT IS ANOTHER NODE'S", "vmid", id, "owner", owner, "started", started)
	s := b.sender.Load()
	if s == nil {
		return // which is among the problems, and this is in the log
	}
	since := max(sys.BootTime()-time.Since(started), 0)
	s.Found(corebeacon.Found{VMID: id, Owner: owner, Epoch: b.Epoch(), Since: since})
}

// problems say of whom this node hears no beacons: of those the silence is not certain, so this node does not shoot them.
func (b *beacons) problems(online func(node string) bool) []string {
	if why := b.why.Load(); why != nil {
		return []string{"beacons do not run on " + b.node + ": " + *why + ": it would not see a guest run twice, and shoots no node"}
	}
	var out []string
	for _, n := range b.roster.nodes() {
		if _, ok := b.heard(n.Name); n.Name != b.node && !ok && online(n.Name) {
			out = append(out, fmt.Sprintf("%s hears no beacons of %s, so it would not shoot it: let UDP port %d through between the nodes", b.node, n.Name, beacon.DefaultPort))
		}
	}
	return out
}

// wait returns when nothing of it runs any more, which takes start's context to be done.
func (b *beacons) wait() {
	b.wg.Wait()
	if s := b.sender.Load(); s != nil {
		s.Wait()
	}
}

// heard is when the last beacon of a node arrived, on any network.
func (b *beacons) heard(node string) (corefence.Sign, bool) {
	s := b.sender.Load()
	if s == nil {
		return corefence.Sign{}, false
	}
	silence, ok := s.Heard(node)
	return corefence.Sign{Kind: corefence.Beacon, At: sys.BootTime() - silence.Any}, ok && silence.Ever
}

// alarms are those that nobody acknowledged on this node.
func (b *beacons) alarms() []api.HAAlarm {
	s := b.sender.Load()
	if s == nil {
		return nil
	}
	var out []api.HAAlarm
	for _, a := range s.Alarms() {
		out = append(out, api.HAAlarm{SID: a.VMID.SID(), Unix: a.At.Unix(), Text: a.String()})
	}
	return out
}

// Running implements beacon.Source: each QEMU says itself whether it runs its guest. One that is frozen, waits for a migration or
// does not answer at once is left out.
func (b *beacons) Running(ctx context.Context) []beacon.Guest {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	epoch, _ := b.lease.Valid()
	snap := b.mirror.Snapshot()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var out []beacon.Guest
	for id, p := range b.procs.list() {
		if p.incoming.Load() || b.resting(id) || b.procs.frozen(id) {
			continue
		}
		wg.Go(func() {
			s, err := p.Status(ctx)
			if err != nil {
				b.rest(id)
			}
			if err != nil || s.Status != "running" {
				return
			}
			kv, _ := snap.Get(model.GuestConfigKey(b.node, id))
			mu.Lock()
			defer mu.Unlock()
			out = append(out, beacon.Guest{VMID: id, Epoch: epoch, Revision: kv.CreateRevision})
		})
	}
	wg.Wait()
	return out
}

func (b *beacons) rest(id model.VMID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mute[id] = time.Now().Add(lookRest)
}

func (b *beacons) resting(id model.VMID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.mute[id]
	if ok && time.Now().After(until) {
		delete(b.mute, id)
		return false
	}
	return ok
}

// Members implements beacon.Source.
func (b *beacons) Members() []beacon.Member {
	var out []beacon.Member
	for _, n := range b.roster.nodes() {
		m := beacon.Member{Name: n.Name}
		m.Addrs[0], _ = netip.ParseAddr(n.Mgmt) // one that is none is not used
		m.Addrs[1], _ = netip.ParseAddr(n.Cluster)
		out = append(out, m)
	}
	return out
}

// Epoch implements beacon.Source.
func (b *beacons) Epoch() uint64 {
	epoch, _ := b.lease.Valid()
	return epoch
}

// beaconKeyID is the number of the only key that there is.
const beaconKeyID = 1

// Keys implements beacon.Source: the secret is drawn from the cluster's CA key, which every member has and nobody else.
func (b *beacons) Keys() []beacon.Key {
	kv, ok := b.mirror.Snapshot().Get(caKeyKey)
	if !ok {
		return nil
	}
	mac := hmac.New(sha256.New, kv.Value)
	mac.Write([]byte("sauh beacon"))
	return []beacon.Key{{ID: beaconKeyID, Secret: mac.Sum(nil)}}
}
