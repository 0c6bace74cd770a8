// Package ceph has a Ceph cluster refuse a node's writes (its OSD blocklist), for the
// guests whose writable disks are all RBD images there.
//
// It drives the programs ceph and rbd and is no client library. It starts and stops no guest.
//
// Invariants: an entry is made for ten years, because one that expires lets a QEMU that hung overwrite its
// successor's blocks; it is taken back only on the word that the node's guests are dead; a guest
// counts as covered only if every client that has its images open is refused. Start reading with [Blocklist].
package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
)

// Expiry is how long an entry lasts, in seconds: ten years, longer than anything hangs.
const Expiry = 315360000

// lasting is how long an entry must still last to count as one of ours.
const lasting = 5 * 365 * 24 * time.Hour

// parallel is how many rbd processes run at once; each takes some 60 ms.
const parallel = 8

// ErrAddress means that a node has no address that could be refused.
var ErrAddress = errors.New("the node has no address for the blocklist")

// Config says whom to refuse, and how the cluster is reached.
type Config struct {
	Node string
	// Addresses are all IP addresses of the node from which it may speak to Ceph.
	Addresses []string
	Guests    []fence.Guest
	// Storages are those of storage.cfg that are on this Ceph.
	Storages []string
	Conf     string // configuration file
	User     string // without "client."
	// Run runs a program to its end and returns its standard output; it obeys its context. sys.Output does.
	Run func(ctx context.Context, argv ...string) ([]byte, error)
	// Now is the clock of the evidence, Wall the date.
	Now  func() time.Duration
	Wall func() time.Time
}

// Blocklist is the blocklist as far as it concerns one node. Its calls may overlap.
type Blocklist struct{ cfg Config }

// New makes one; nothing is run yet.
func New(cfg Config) *Blocklist { return &Blocklist{cfg: cfg} }

// Ask looks whether the node is refused already. No refusal in the evidence means that it is not.
func (b *Blocklist) Ask(ctx context.Context) (fence.Evidence, error) {
	refused, err := b.refused(ctx)
	if err != nil || !refused {
		return fence.Evidence{}, err
	}
	return b.evidence(ctx)
}

// Shoot has the node refused by all its addresses, waits until the cluster lists that, and then looks who has the
// guests' images open. Idempotent.
func (b *Blocklist) Shoot(ctx context.Context) (fence.Evidence, error) {
	addresses, err := b.addresses()
	if err != nil {
		return fence.Evidence{}, err
	}
	errs := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() {
			_, errs[i] = b.ceph(ctx, "osd", "blocklist", "add", a.String(), strconv.Itoa(Expiry))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fence.Evidence{}, fmt.Errorf("blocklist %s: %w", b.cfg.Node, err)
	}
	refused, err := b.refused(ctx)
	if err != nil {
		return fence.Evidence{}, err
	}
	if !refused {
		return fence.Evidence{}, fmt.Errorf("blocklist %s: %w: the entry was accepted and is not listed", b.cfg.Node, fence.ErrNotVerified)
	}
	return b.evidence(ctx)
}

// Rehearse tries reading and writing the list with an address of no machine (RFC 5737), for a minute.
func (b *Blocklist) Rehearse(ctx context.Context) error {
	const nobody = "192.0.2.254:0/1"
	if _, err := b.addresses(); err != nil {
		return err
	}
	if _, err := b.ceph(ctx, "osd", "blocklist", "add", nobody, "60"); err != nil {
		return err
	}
	entries, err := b.list(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(entries, func(e entry) bool { return e.client == "192.0.2.254:0/1" }) {
		return fmt.Errorf("%w: an entry was accepted and is not listed", fence.ErrNotVerified)
	}
	if _, err := b.ceph(ctx, "osd", "blocklist", "rm", nobody); err != nil {
		return err
	}
	for _, g := range b.candidates() {
		if _, err := b.clients(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// Release takes the lasting entries of the node back. dead must be of this node. still is asked right before each is taken back, and none is once it
// returns an error: an entry has no owner, and a newer one has the same name.
func (b *Blocklist) Release(ctx context.Context, dead fence.Dead, still func(context.Context) error) error {
	if dead.Node != b.cfg.Node || dead.Epoch == 0 {
		return fmt.Errorf("release %s: there is no word that its guests are dead", b.cfg.Node)
	}
	addresses, err := b.addresses()
	if err != nil {
		return err
	}
	entries, err := b.list(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if slices.Contains(addresses, e.ip) && e.until.Sub(b.cfg.Wall()) > lasting {
			if err := still(ctx); err != nil {
				return errors.Join(append(errs, fmt.Errorf("release %s: %w", b.cfg.Node, err))...)
			}
			_, err := b.ceph(ctx, "osd", "blocklist", "rm", e.client)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// refused says whether every address of the node is refused as a whole, for good.
func (b *Blocklist) refused(ctx context.Context) (bool, error) {
	addresses, err := b.addresses()
	if err != nil {
		return false, err
	}
	entries, err := b.list(ctx)
	if err != nil {
		return false, err
	}
	for _, a := range addresses {
		whole := func(e entry) bool {
			return e.ip == a && strings.HasSuffix(e.client, ":0/0") && e.until.Sub(b.cfg.Wall()) > lasting
		}
		if !slices.ContainsFunc(entries, whole) {
			return false, nil
		}
	}
	return true, nil
}

// evidence expects that the node is refused. Guests of which a client elsewhere has an image open are left out.
func (b *Blocklist) evidence(ctx context.Context) (fence.Evidence, error) {
	at := b.cfg.Now()
	addresses, err := b.addresses()
	if err != nil {
		return fence.Evidence{}, err
	}
	guests := b.candidates()
	covered, errs := make([]bool, len(guests)), make([]error, len(guests))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, g := range guests {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			clients, err := b.clients(ctx, g)
			elsewhere := slices.ContainsFunc(clients, func(ip netip.Addr) bool { return !slices.Contains(addresses, ip) })
			covered[i], errs[i] = err == nil && !elsewhere, err
		})
	}
	wg.Wait()
	r := fence.Refusal{At: at, Guests: []model.VMID{}}
	for i, g := range guests {
		if covered[i] {
			r.Guests = append(r.Guests, g.VMID)
		}
	}
	if len(r.Guests) == 0 {
		if err := errors.Join(errs...); err != nil {
			return fence.Evidence{}, fmt.Errorf("look who has the images of %s open: %w", b.cfg.Node, err)
		}
	}
	return fence.Evidence{Refusal: &r}, nil
}

// candidates are the guests that this Ceph alone can keep from writing.
func (b *Blocklist) candidates() []fence.Guest {
	var out []fence.Guest
	for _, g := range b.cfg.Guests {
		named := !slices.ContainsFunc(g.Disks, func(d fence.Disk) bool { return d.Writable && !imageName(d.Image) })
		if named && fence.AllOn(b.cfg.Storages, g.Disks) {
			out = append(out, g)
		}
	}
	return out
}

// imageName says whether s is "pool/name", and no option.
func imageName(s string) bool {
	pool, name, ok := strings.Cut(s, "/")
	return ok && pool != "" && name != "" && !strings.HasPrefix(s, "-")
}

// clients are the addresses from which the guest's writable images are locked or watched.
func (b *Blocklist) clients(ctx context.Context, g fence.Guest) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, d := range g.Disks {
		if !d.Writable {
			continue
		}
		locks, err := b.rbd(ctx, "lock", "ls", d.Image)
		if err != nil {
			return nil, err
		}
		status, err := b.rbd(ctx, "status", d.Image)
		if err != nil {
			return nil, err
		}
		found, err := addressesIn(locks, status)
		if err != nil {
			return nil, fmt.Errorf("read who has %s open: %w", d.Image, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// addressesIn reads the addresses out of the answers of rbd lock ls (a list, or in old versions an object by lock id) and rbd status.
func addressesIn(locks, status []byte) ([]netip.Addr, error) {
	type client struct {
		Address string `json:"address"`
	}
	var all []client
	if err := json.Unmarshal(locks, &all); err != nil {
		var byID map[string]client
		if json.Unmarshal(locks, &byID) != nil {
			return nil, err
		}
		for _, c := range byID {
			all = append(all, c)
		}
	}
	var watched struct {
		Watchers *[]client `json:"watchers"`
	}
	if err := json.Unmarshal(status, &watched); err != nil {
		return nil, err
	}
	if watched.Watchers == nil {
		return nil, errors.New("rbd status names no watchers, not even an empty list")
	}
	var out []netip.Addr
	for _, c := range append(all, *watched.Watchers...) {
		ip, _, err := parseClient(c.Address)
		if err != nil {
			return nil, err
		}
		out = append(out, ip)
	}
	return out, nil
}

// entry is a line of the blocklist.
type entry struct {
	client string // "10.77.0.11:0/4242"
	ip     netip.Addr
	until  time.Time
}

func (b *Blocklist) list(ctx context.Context) ([]entry, error) {
	text, err := b.ceph(ctx, "osd", "blocklist", "ls")
	if err != nil {
		return nil, err
	}
	var raw []struct{ Addr, Until string }
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("read the blocklist: %w", err)
	}
	var out []entry
	for _, r := range raw {
		ip, client, err := parseClient(r.Addr)
		if err != nil {
			continue // a range, which is nobody's of ours
		}
		until, err := time.Parse("2006-01-02T15:04:05.999999-0700", r.Until)
		if err != nil {
			return nil, fmt.Errorf("read the blocklist: %w", err)
		}
		out = append(out, entry{client: client, ip: ip, until: until})
	}
	return out, nil
}

// parseClient reads "10.77.0.11:0/4242", with or without the protocol that newer versions write before it.
func parseClient(s string) (netip.Addr, string, error) {
	for _, protocol := range []string{"v1:", "v2:", "any:"} {
		s = strings.TrimPrefix(s, protocol)
	}
	host, _, ok := strings.Cut(s, "/")
	at, err := netip.ParseAddrPort(host)
	if !ok || err != nil {
		return netip.Addr{}, "", fmt.Errorf("%q is no client's address", s)
	}
	return at.Addr().Unmap(), s, nil
}

func (b *Blocklist) addresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range b.cfg.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsLoopback() || a.IsUnspecified() {
			return nil, fmt.Errorf("%w: %q", ErrAddress, text)
		}
		if !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrAddress, b.cfg.Node)
	}
	return out, nil
}

func (b *Blocklist) ceph(ctx context.Context, args ...string) ([]byte, error) {
	return b.cfg.Run(ctx, append([]string{"ceph", "--conf", b.cfg.Conf, "--name", "client." + b.cfg.User, "--format", "json"}, args...)...)
}

func (b *Blocklist) rbd(ctx context.Context, args ...string) ([]byte, error) {
	return b.cfg.Run(ctx, append([]string{"rbd", "--conf", b.cfg.Conf, "--id", b.cfg.User, "--format", "json"}, args...)...)
}
