package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	corefence "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

const fenceCfgKey = model.ConfigPrefix + "ha/fence.cfg"

// fencing has the methods of ha/fence.cfg asked and fired when the manager says so, and rehearses them while nothing is wrong. What an answer proves,
// and for how long, is the manager's to say.
type fencing struct {
	node   string
	log    *slog.Logger
	st     store.Store
	mirror *mirror.Mirror
	live   entitled
	// beacon is when the last one of a node arrived.
	beacon  func(node string) (corefence.Sign, bool)
	quorate func() bool
	active  atomic.Bool // this node's manager is the one that decides

	wg sync.WaitGroup
	mu sync.Mutex
	// sets are the methods, each alone and once a purpose: a BMC that hangs while it is asked keeps nobody from shooting.
	sets  map[setKey]builtSet // guarded by mu, as all below
	said  map[string]saying   // by node and method: what it said last
	freed map[string]uint64   // by node: the epoch up to which the storage serves it again
	busy  map[string]bool     // nodes that are being shot, or served again: never both at once
}

// saying is what a method said, and when it was logged.
type saying struct {
	kind   string // ha.RefusalKind of it
	logged time.Duration
}

// sayAgain is the age at which a refusal is logged once more that has not changed.
const sayAgain = time.Minute

// hearing knows when other nodes were last heard of.
type hearing interface {
	Online(node string) bool
	Renewed(node string) (at time.Duration, ok bool)
}

// entitled knows beside that whether this node has a lease.
type entitled interface {
	hearing
	Valid() (epoch uint64, ok bool)
}

// setKey names a set; method "" is all of the node's.
type setKey struct{ node, method, purpose string }

// builtSet is a set and what it was built from.
type builtSet struct {
	*fence.Set
	from string
}

func newFencing(f *fencing) *fencing {
	f.sets, f.said, f.freed, f.busy = map[setKey]builtSet{}, map[string]saying{}, map[string]uint64{}, map[string]bool{}
	return f
}

// wait returns when nothing of it runs any more.
func (f *fencing) wait() {
	f.mu.Lock()
	sets := f.sets
	f.sets = map[setKey]builtSet{}
	f.mu.Unlock()
	for _, s := range sets {
		s.Close()
	}
	f.wg.Wait()
}

// methodsFor lists the sections of ha/fence.cfg for a node; a file that cannot be read has none, and the lease goes on.
func methodsFor(s mirror.Snapshot, node string) ([]pveconf.FenceMethod, int64) {
	cfg, err := mirror.Decode(s, fenceCfgKey, pveconf.ParseFence)
	if err != nil {
		return nil, 0
	}
	var out []pveconf.FenceMethod
	for _, m := range cfg.Value {
		if m.For(node) {
			out = append(out, m)
		}
	}
	return out, cfg.Revision
}

// rehearsalsOf are the last rehearsals of a node's methods.
func rehearsalsOf(s mirror.Snapshot, node string) (map[string]corefence.Rehearsal, int64) {
	rec, _ := mirror.Get[[]corefence.Rehearsal](s, model.HARehearsals+node) // what cannot be read was never made
	out := map[string]corefence.Rehearsal{}
	for _, r := range rec.Value {
		out[r.Method] = r
	}
	return out, rec.Revision
}

// set is the methods of a node, or the one named, for a purpose: built anew when something that it rests on changed.
func (f *fencing) set(snap mirror.Snapshot, key setKey) *fence.Set {
	cfg, rev := methodsFor(snap, key.node)
	rehearsals, tried := rehearsalsOf(snap, key.node)
	node, _ := mirror.Get[model.Node](snap, model.NodePrefix+key.node)
	storages, _ := mirror.Decode(snap, storageCfgKey, pveconf.ParseStorages) // one that cannot be read has none, and nobody is covered
	guests := guestsToFence(snap, key.node, storages.Value)
	from := fmt.Sprint(rev, tried, node.Revision, storages.Revision, guests, secretsOf(snap))
	f.mu.Lock()
	defer f.mu.Unlock()
	old, ok := f.sets[key]
	if ok && old.from == from {
		return old.Set
	}
	if ok {
		f.wg.Go(old.Close)
	}
	if key.method != "" {
		cfg = slices.DeleteFunc(cfg, func(m pveconf.FenceMethod) bool { return m.Name() != key.method })
	}
	s := fence.Build(cfg, fence.Node{
		Name: key.node, UUID: node.Value.UUID, Addresses: []string{node.Value.Cluster, node.Value.Mgmt}, Guests: guests,
		RBD: usableRBD(storages.Value),
	}, fence.Env{
		Secret: func(path string) (string, error) {
			kv, ok := snap.Get(model.ConfigPrefix + path)
			if !ok {
				return "", model.Errorf(model.ErrNotFound, "the file %s does not exist", path)
			}
			return string(kv.Value), nil
		},
		Rehearsal: func(method string) corefence.Rehearsal { return rehearsals[method] },
		Run:       sys.Output, Now: sys.BootTime, Wall: time.Now,
	})
	f.sets[key] = builtSet{s, from}
	return s
}

// secretsOf tells one state of the passwords from another.
func secretsOf(s mirror.Snapshot) (newest int64) {
	for kv := range s.All(model.ConfigPrefix + "priv/fence/") {
		newest += kv.ModRevision
	}
	return newest
}

// guestsToFence are the guests under a node's path with their disks.
func guestsToFence(s mirror.Snapshot, node string, storages []pveconf.Storage) []corefence.Guest {
	var out []corefence.Guest
	for kv := range s.All(model.ConfigPrefix + "nodes/" + node + "/") {
		if _, id, ok := model.ParseGuestConfigKey(kv.Key); ok {
			out = append(out, corefence.Guest{VMID: id, Disks: disksToFence(guestFileOf(s, kv.Key, kv.Value, node, id).conf, storages)})
		}
	}
	return out
}

// usableRBD names the RBD storages that guests can use.
func usableRBD(storages []pveconf.Storage) []string {
	usable := slices.DeleteFunc(slices.Clone(storages), func(s pveconf.Storage) bool { return s.Unsupported != "" || s.Disable })
	return storagesOnRBD(usable)
}

// signs are the last times that a node was heard of.
func (f *fencing) signs(node string) []corefence.Sign {
	var out []corefence.Sign
	if at, ok := f.live.Renewed(node); ok {
		out = append(out, corefence.Sign{Kind: corefence.Renewal, At: at})
	}
	if sign, ok := f.beacon(node); ok {
		out = append(out, sign)
	}
	return out
}

// describe fills in what the manager has to know about the ways to prove a member dead.
func (f *fencing) describe(snap mirror.Snapshot, m *ha.Member) {
	now, heard := sys.BootTime(), time.Duration(-1)
	for _, s := range f.signs(m.Name) {
		heard = max(heard, s.At)
		m.Beacons = m.Beacons || s.Kind == corefence.Beacon
	}
	if heard >= 0 {
		m.Heard = max(now-heard, 1)
	}
	cfg, _ := methodsFor(snap, m.Name)
	if len(cfg) == 0 {
		return
	}
	for _, said := range f.set(snap, setKey{node: m.Name}).Methods() {
		method := ha.FenceMethod{Name: said.Method, Blocklist: isBlocklist(said.Method), Rehearsed: said.Grade != corefence.Worthless}
		if i := slices.IndexFunc(cfg, func(c pveconf.FenceMethod) bool { return c.Name() == said.Method }); i >= 0 {
			method.Order = cfg[i].Order
		}
		m.Fencing = append(m.Fencing, method)
	}
}

// isBlocklist tells by a method's name what it does.
func isBlocklist(method string) bool { return strings.HasPrefix(method, pveconf.FenceCeph+":") }

// answer carries out the manager's actions that are about a method: AskFence and Shoot.
func (f *fencing) answer(ctx context.Context, a ha.Action) (ha.Event, error) {
	switch a := a.(type) {
	case ha.AskFence:
		return f.ask(ctx, a)
	case ha.Shoot:
		return f.shoot(ctx, a)
	}
	return nil, fmt.Errorf("no method of fencing can do %T", a)
}

// ask has one method asked whether the node has power.
func (f *fencing) ask(ctx context.Context, a ha.AskFence) (ha.Event, error) {
	s := f.set(f.mirror.Snapshot(), setKey{a.Node, a.Method, "ask"})
	proof, err := f.take(a.Node, a.Method, s.Ask(ctx, func() []corefence.Sign { return f.signs(a.Node) }))
	switch {
	case err == nil:
		return ha.FenceResult{Action: a, Off: proof.Kind == corefence.Power, Lasted: proof.Lasted}, nil
	case isAnswer(err):
		return ha.FenceResult{Action: a}, nil
	}
	return nil, err
}

// isAnswer: the method has told what it had to, and it is no proof.
func isAnswer(err error) bool {
	return errors.Is(err, corefence.ErrNotOff) || errors.Is(err, corefence.ErrNotVerified) || errors.Is(err, corefence.ErrAlive)
}

// shoot has one method switch the node off, or its storage refuse it, if the manager's decision still holds.
func (f *fencing) shoot(ctx context.Context, a ha.Shoot) (ha.Event, error) {
	begun := sys.BootTime()
	if isBlocklist(a.Method) {
		done, ok := f.occupy(a.Node)
		if !ok {
			return nil, model.Errorf(model.ErrBusy, "the storage is just being told to serve %s again", a.Node)
		}
		defer done()
	}
	s := f.set(f.mirror.Snapshot(), setKey{a.Node, a.Method, "shoot"})
	signs := func() []corefence.Sign { return f.signsSince(a) }
	proof, err := f.take(a.Node, a.Method, s.Shoot(ctx, begun, signs, func(ctx context.Context) error {
		if err := f.holds(ctx, a); err != nil {
			return err
		}
		f.log.Warn("ha: "+a.Why(), "node", a.Node, "method", a.Method)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.freed, a.Node) // whatever comes of it, the storage may refuse it now
		return nil
	}))
	switch {
	case errors.Is(err, fence.ErrHeardOf):
		return nil, model.Errorf(model.ErrBusy, "shoot %s by %s: %s", a.Node, a.Method, err)
	case err != nil:
		return nil, fmt.Errorf("shoot %s by %s: %w", a.Node, a.Method, err)
	}
	f.log.Warn("ha: a node was shot", "node", a.Node, "method", a.Method)
	if a.Blocklist {
		return ha.FenceResult{Action: a, Guests: proof.Guests}, nil
	}
	return ha.ActionDone{Action: a}, nil
}

// signsSince are the node's signs of life for a shot: a record that is another one by now, a renewal or a cut on other proof, is one.
func (f *fencing) signsSince(a ha.Shoot) []corefence.Sign {
	out := f.signs(a.Node)
	live, err := mirror.Get[model.Live](f.mirror.Snapshot(), model.LivePrefix+a.Node)
	if err == nil && live.Revision > a.LiveRevision {
		out = append(out, corefence.Sign{Kind: corefence.Renewal, At: sys.BootTime()})
	}
	return out
}

// holdsLimit bounds the questions to the store whether a node may still be shot: what was read must not be old when the order goes out.
const holdsLimit = 2 * time.Second

// holds says why a shot must not be fired any more, by what the store says now: the node has renewed, or this one is not the manager or has no lease.
// A decision that waited, because this process stood still for example, would else shoot a node that is well.
func (f *fencing) holds(ctx context.Context, a ha.Shoot) error {
	ctx, cancel := context.WithTimeout(ctx, holdsLimit)
	defer cancel()
	var live model.Live
	revision, err := readNow(ctx, f.st, model.LivePrefix+a.Node, &live)
	if err == nil && revision != a.LiveRevision {
		err = model.Errorf(model.ErrBusy, "%s was heard of, or fenced, since it was to be shot", a.Node)
	}
	return cmp.Or(err, f.manages(ctx))
}

// manages says why this node must not act for the cluster now.
func (f *fencing) manages(ctx context.Context) error {
	var manager model.Manager
	if _, err := readNow(ctx, f.st, model.ManagerKey, &manager); err != nil {
		return err
	}
	if manager.Node != f.node {
		return model.Errorf(model.ErrBusy, "%s is not the manager any more", f.node)
	}
	if _, ok := f.live.Valid(); !ok {
		return model.Errorf(model.ErrBusy, "%s has no valid lease", f.node)
	}
	return nil
}

// occupy keeps a node from being refused by its storage and served again at the same time, of which nobody would know the outcome.
func (f *fencing) occupy(node string) (done func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy[node] {
		return nil, false
	}
	f.busy[node] = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.busy, node)
	}, true
}

// take returns the proof that a method brought, or says why it brought none, and logs what is new of it.
func (f *fencing) take(node, method string, out fence.Outcome) (corefence.Proof, error) {
	proof := out.Proof
	if proof == nil && len(out.Partial) > 0 {
		proof = &out.Partial[0]
	}
	err := error(model.Errorf(model.ErrNotFound, "%s is not in ha/fence.cfg any more", method))
	if len(out.Said) > 0 {
		err = cmp.Or(out.Said[0].Err, errors.New("it brought nothing"))
	}
	reason := err.Error()
	switch {
	case proof == nil:
	case proof.Kind == corefence.Storage:
		reason = fmt.Sprintf("%s keeps %s from the storage, for the guests %v", method, node, proof.Guests)
	default:
		reason = method + " proves that " + node + " has no power"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now, key := sys.BootTime(), node+" "+method
	if last, ok := f.said[key]; !ok || last.kind != ha.RefusalKind(reason) || proof == nil && now-last.logged >= sayAgain {
		f.said[key] = saying{ha.RefusalKind(reason), now}
		level := slog.LevelInfo
		if proof == nil && !isAnswer(err) {
			level = slog.LevelWarn
		}
		f.log.Log(context.Background(), level, "ha: fencing method", "node", node, "method", method, "says", reason)
	}
	if proof == nil {
		return corefence.Proof{}, err
	}
	return *proof, nil
}

// methods says what is configured for a node and what it is worth.
func (f *fencing) methods(node string) ([]fence.Said, error) {
	snap := f.mirror.Snapshot()
	if _, err := mirror.Decode(snap, fenceCfgKey, pveconf.ParseFence); err != nil {
		return nil, err
	}
	return f.set(snap, setKey{node: node}).Methods(), nil
}

const (
	// rehearseEvery is the age at which a rehearsal is made again, rehearseAgain that of one that failed: whoever
	// repairs a BMC need not wait long.
	rehearseEvery = time.Hour
	rehearseAgain = time.Minute
	// rehearseLook is how often it is looked whether one is due.
	rehearseLook = 10 * time.Second
)

// run rehearses what is due while this node is the manager, without switching anything, and lets the storage serve nodes again that are
// back from their death.
func (f *fencing) run(ctx context.Context) {
	for ctx.Err() == nil {
		if f.active.Load() && f.quorate() {
			f.rehearseDue(ctx)
			f.release(ctx)
		}
		sleep(ctx, rehearseLook)
	}
}

func (f *fencing) rehearseDue(ctx context.Context) {
	snap := f.mirror.Snapshot()
	nodes, _ := mirror.List[model.Node](snap, model.NodePrefix)
	for name := range nodes {
		if name != f.node && !f.live.Online(name) {
			continue
		}
		due := f.due(snap, name, time.Now())
		if len(due) == 0 {
			continue
		}
		if _, err := f.rehearseMethods(ctx, name, nil, due); err != nil && ctx.Err() == nil {
			f.log.Warn("the rehearsal of a fencing method is not recorded", "node", name, "err", err)
		}
	}
}

// due lists the methods of a node that were not rehearsed as they are now, or not for long. What cannot be tried without switching
// is a person's to try.
func (f *fencing) due(snap mirror.Snapshot, node string, now time.Time) []string {
	cfg, _ := methodsFor(snap, node)
	if len(cfg) == 0 {
		return nil
	}
	rehearsals, _ := rehearsalsOf(snap, node)
	digests := f.set(snap, setKey{node: node}).Digests()
	var out []string
	for _, m := range cfg {
		r, made := rehearsals[m.Name()]
		every := rehearseEvery
		if r.Failed != "" && !r.Refuted {
			every = rehearseAgain
		}
		if !made || r.Digest != digests[m.Name()] || now.Sub(time.Unix(r.At, 0)) > every {
			out = append(out, m.Name())
		}
	}
	return out
}

// rehearse tries the methods of a node and records how it went. With switching the node is really switched off, by one of them: it must be another
// one than this, be there, be kept free of guests by a maintenance or while HA is disarmed, and have none.
func (f *fencing) rehearse(ctx context.Context, node string, switching bool) ([]corefence.Rehearsal, error) {
	snap := f.mirror.Snapshot()
	switch {
	case node != f.node && !f.live.Online(node):
		return nil, model.Errorf(model.ErrUnavailable, "node %s is not online: a method is rehearsed on a node that runs", node)
	case switching && node == f.node:
		return nil, model.Errorf(model.ErrInvalid, "%s cannot switch itself off and tell how it went: run this on another node", node)
	}
	names := rehearsalOrder(snap, node)
	if len(names) == 0 {
		return nil, model.Errorf(model.ErrNotFound, "ha/fence.cfg has no method for node %s", node)
	}
	if !switching {
		return f.rehearseMethods(ctx, node, nil, names)
	}
	vacant := func(ctx context.Context) error { return f.vacant(ctx, node) }
	if err := vacant(ctx); err != nil {
		return nil, err
	}
	return f.rehearseMethods(ctx, node, vacant, names)
}

// rehearsalOrder names the methods of a node. One by switching ends with the first that switched, so those that nobody saw switching come
// before those that failed in it, and these before those that passed: each has its turn if the rehearsal is repeated.
func rehearsalOrder(snap mirror.Snapshot, node string) []string {
	cfg, _ := methodsFor(snap, node)
	rehearsals, _ := rehearsalsOf(snap, node)
	rank := func(m pveconf.FenceMethod) int {
		r := rehearsals[m.Name()]
		switch {
		case isBlocklist(m.Name()):
			return 0 // it switches nothing
		case r.Refuted:
			return 2
		case r.Switched:
			return 3
		}
		return 1
	}
	slices.SortStableFunc(cfg, func(a, b pveconf.FenceMethod) int { return rank(a) - rank(b) })
	var names []string
	for _, m := range cfg {
		names = append(names, m.Name())
	}
	return names
}

// vacantLimit bounds the questions to the store whether a node may be switched off.
const vacantLimit = 5 * time.Second

// vacant says why a node must not be switched off for a rehearsal, by what the store says now: it has guests, or HA may give it some.
func (f *fencing) vacant(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, vacantLimit)
	defer cancel()
	var request ha.NodeRequest
	var mode ha.Mode
	_, err := readNow(ctx, f.st, model.HARequestPrefix+node, &request)
	_, merr := readNow(ctx, f.st, model.HAModeKey, &mode)
	guests, _, gerr := f.st.List(ctx, model.ConfigPrefix+"nodes/"+node+"/", store.Linearizable)
	intents, _, ierr := f.st.List(ctx, model.IntentPrefix, store.Linearizable)
	if err := errors.Join(err, merr, gerr, ierr); err != nil {
		return fmt.Errorf("look whether %s is empty: %w", node, err)
	}
	if now := time.Now().Unix(); !request.Maintenance && request.DisarmAt(now) == ha.Armed && mode.At(now) == ha.Armed {
		return model.Errorf(model.ErrBusy, "HA may start guests on %s meanwhile: run `sauh ha maintenance on %s` first", node, node)
	}
	for _, kv := range guests {
		if _, id, ok := model.ParseGuestConfigKey(kv.Key); ok {
			return model.Errorf(model.ErrBusy, "guest %s is on %s: move its guests away first, for example by `sauh ha maintenance on %s`", id, node, node)
		}
	}
	for _, kv := range intents {
		var in model.Intent
		if err := json.Unmarshal(kv.Value, &in); err != nil || in.Source == node || in.Target == node {
			return model.Errorf(model.ErrBusy, "guest %s is being migrated: wait until it has arrived", strings.TrimPrefix(kv.Key, model.IntentPrefix))
		}
	}
	return nil
}

// readNow reads a record linearizably into out and returns its revision, 0 if it is not there.
func readNow(ctx context.Context, st store.Store, key string, out any) (int64, error) {
	kv, err := st.Get(ctx, key, store.Linearizable)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	}
	if err := json.Unmarshal(kv.Value, out); err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	return kv.ModRevision, nil
}

// rehearseMethods tries these methods and records how it went; ready is fence.Rehearsing's Switch.
func (f *fencing) rehearseMethods(ctx context.Context, node string, ready func(context.Context) error, names []string) ([]corefence.Rehearsal, error) {
	s := f.set(f.mirror.Snapshot(), setKey{node: node, purpose: "rehearse"})
	results := s.Rehearse(ctx, fence.Rehearsing{
		At: time.Now().Unix(), Signs: func() []corefence.Sign { return f.signs(node) }, Switch: ready, Names: names,
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for _, r := range results {
		if r.Failed != "" {
			f.log.Warn("the rehearsal of a fencing method failed: it is not used until one passes", "node", node, "method", r.Method, "why", r.Failed)
		}
	}
	var out []corefence.Rehearsal
	err := editFile(ctx, f.st, "record the rehearsal of "+node, model.HARehearsals+node, func(old []byte) ([]byte, error) {
		var before []corefence.Rehearsal
		if len(old) > 0 && json.Unmarshal(old, &before) != nil {
			before = nil
		}
		out = mergeRehearsals(before, results)
		return mustJSON(out), nil
	})
	return out, err
}

// mergeRehearsals takes results in. What one by switching has found out stays known after one that only asked: a BMC that was caught lying is
// not believed again because it answers, but when it was seen to switch.
func mergeRehearsals(before, results []corefence.Rehearsal) []corefence.Rehearsal {
	out := slices.Clone(before)
	for _, r := range results {
		i := slices.IndexFunc(out, func(o corefence.Rehearsal) bool { return o.Method == r.Method })
		if i < 0 {
			out = append(out, r)
			continue
		}
		if old := out[i]; old.Digest == r.Digest && !r.Switched && !r.Refuted {
			switch {
			case old.Refuted:
				r.Refuted, r.Failed = true, old.Failed
			case old.Switched:
				r.Switched, r.Early, r.Took = true, old.Early, old.Took
			}
		}
		out[i] = r
	}
	return out
}

// release lets the storage serve nodes again that killed their guests and registered anew.
func (f *fencing) release(ctx context.Context) {
	snap := f.mirror.Snapshot()
	lives, _ := mirror.List[model.Live](snap, model.LivePrefix)
	for node, l := range lives {
		cfg, _ := methodsFor(snap, node)
		blocklist := slices.ContainsFunc(cfg, func(m pveconf.FenceMethod) bool { return isBlocklist(m.Name()) })
		f.mu.Lock()
		done := f.freed[node]
		f.mu.Unlock()
		if !blocklist || l.Value.Fenced || l.Value.Left || !f.live.Online(node) && node != f.node || done > l.Value.Epoch {
			continue
		}
		f.serve(ctx, snap, node, l.Value.Epoch)
	}
}

// serveLimit bounds one release: monitors that do not answer must not keep the rehearsals waiting. It is shorter than a node must be silent before
// anybody shoots it, so what was decided while the node was there ends before an entry of a newer shot can stand.
const serveLimit = 2 * time.Second

// isBack says why the storage must not serve a node again now: it was fenced or shut out anew, or this node is not the manager any more.
func (f *fencing) isBack(ctx context.Context, node string, epoch uint64) error {
	var live model.Live
	revision, err := readNow(ctx, f.st, model.LivePrefix+node, &live)
	switch {
	case err != nil:
		return err
	case revision == 0 || live.Fenced || live.Left || live.Epoch != epoch || node != f.node && !f.live.Online(node):
		return model.Errorf(model.ErrBusy, "%s is not there with epoch %d any more", node, epoch)
	}
	return f.manages(ctx)
}

// serve has the storage serve a node of this epoch again, if nobody is shooting it.
func (f *fencing) serve(ctx context.Context, snap mirror.Snapshot, node string, epoch uint64) {
	done, ok := f.occupy(node)
	if !ok {
		return
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, serveLimit)
	defer cancel()
	alive := func(ctx context.Context) error { return f.isBack(ctx, node, epoch) }
	err := f.set(snap, setKey{node: node, purpose: "release"}).Release(ctx, corefence.Dead{Node: node, Epoch: epoch}, alive)
	if err != nil {
		f.log.Warn("the storage does not serve a node yet that is back", "node", node, "err", err)
		return
	}
	f.mu.Lock()
	f.freed[node] = epoch + 1
	f.mu.Unlock()
}
