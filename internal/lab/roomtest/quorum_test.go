//go:build room

package roomtest

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

func TestWithoutAQuorumReadsWorkAndWritesAreRefusedWithinASecond(t *testing.T) {
	r := open(t)
	protected, free := r.Guest(100).On("n1").Protected(), r.Guest(101).On("n1")
	r.Must("n1", "vm create 118 --name idle --memory 64")
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 118") })
	r.Shell("n1", "mkdir -p /srv/nas/spare")
	r.Must("n1", "storage add dir spare --path /srv/nas/spare --shared --late-writes no")
	t.Cleanup(func() { r.Sauh("n1", "storage remove spare") })
	before := r.everything()
	boot, was, freeWas := protected.MustAnswer(patience).BootID, protected.QEMU(), free.QEMU()
	freeLedger, protectedLedger := free.Ledger(), protected.Ledger()
	slowest := r.startTime()

	r.PowerOff("n3")
	since := r.PowerOff("n2")
	// The leader may be among those that are off, or not know yet that it is alone.
	r.mustRefuseWrite(free)
	r.Eventually("n1 knows that it has no quorum", patience, func() error {
		if r.Cluster("n1").Quorate {
			return errors.New("it says that it has one")
		}
		return nil
	})
	if st := r.Cluster("n1"); st.ExpectedVotes != 3 || st.Quorum != 2 || len(st.Nodes) != 3 {
		t.Errorf("cluster status without quorum: %+v", st)
	}
	for line, want := range reads() {
		if a := r.Must("n1", line); !strings.Contains(a.out, want) {
			t.Errorf("want %q in the answer: %s", want, a)
		}
	}
	for line, want := range writes() {
		a := r.Refused("n1", line, want)
		t.Logf("%v: sauh %s: %s", a.took.Round(time.Millisecond), line, strings.TrimSpace(a.err))
		if a.took > time.Second+slowest {
			t.Errorf("sauh %s was refused only after %v", line, a.took)
		}
	}
	r.Throughout(leaseTime-time.Since(since), "", nil)
	if frozen := r.Logged("n1", guardUnit, since, "guest is now frozen", "guest=100"); frozen.Sub(since) > leaseTime {
		t.Errorf("the protected guest was frozen only after %v", frozen.Sub(since))
	}
	r.Throughout(2*time.Second, "the protected guest is frozen and the other one runs", func() error {
		if p, q := protected.QEMU(), free.QEMU(); !p.frozen || q.frozen {
			return fmt.Errorf("%v and %v", &p, &q)
		}
		return nil
	})
	if row, err := protected.FindAt("n1"); err != nil || !row.Frozen {
		t.Errorf("the protected guest is listed as %+v, %v", row, err)
	}
	freeLedger.MustGoOn(time.Second)

	r.PowerOn("n2")
	back := r.PowerOn("n3")
	took := r.Eventually("n1 takes writes again", 5*time.Second-time.Since(back), func() error { return r.write(free, "written") })
	t.Logf("n1 takes writes %v after the others had booted", took.Round(time.Millisecond))
	if err := r.write(free, ""); err != nil {
		t.Error(err)
	}
	protectedLedger.MustGoOn(patience)
	t.Logf("the protected guest goes on %v after the others had booted", time.Since(back).Round(time.Millisecond))
	if p := protected.QEMU(); p.pid != was.pid || p.frozen {
		t.Errorf("the protected guest had %v and has %v", &was, &p)
	}
	if now := protected.MustAnswer(patience).BootID; now != boot {
		t.Error("the protected guest booted again")
	}
	if q := free.QEMU(); q.pid != freeWas.pid || !q.frozenAt.IsZero() {
		t.Errorf("the unprotected guest had %v and has %v", &freeWas, &q)
	}
	if sum := freeLedger.MustBeWhole(); sum.LongestMS > 2000 {
		t.Errorf("the unprotected guest stood still for %.0f ms", sum.LongestMS)
	}
	protectedLedger.MustBeWhole()
	r.AllWell()
	if now := r.everything(); now != before {
		t.Errorf("something was changed. Before:\n%s\nafter:\n%s", before, now)
	}
}

// reads are command lines that work without a quorum, and what they print.
func reads() map[string]string {
	return map[string]string{
		"vm list":        "probe101",
		"vm config 101":  "virtio0: nas:101/vm-101-disk-0.raw",
		"vm status 101":  "running",
		"cluster status": "Total votes",
		"pvecm status":   "Quorate:          No",
		"ha list":        "vm:100",
		"ha status":      "vm:100",
		"storage list":   "nas",
		"node list":      "n1",
		"node status":    "n1",
		"task list":      "qmcreate",
	}
}

// writes are command lines that need a quorum, and what is said when there is none.
func writes() map[string]string {
	const none = "no quorum"
	return map[string]string{
		"vm create 150 --memory 64":             none,
		"vm set 101 --name changed":             none,
		"vm start 118":                          none,
		"vm destroy 118":                        none,
		"vm migrate 101 --to n2 --online":       none,
		"vm stop 100":                           none,
		"vm shutdown 100":                       none,
		"ha add vm:101":                         none,
		"ha set vm:100 --state stopped":         none,
		"ha remove vm:100":                      none,
		"storage add dir other --path /srv/nas": none,
		"storage remove spare":                  none,
		"cluster key":                           none,
		"cluster remove n3":                     none,
		"cluster leave":                         "n1 still owns guests",
		"cluster create another":                "already a member",
	}
}

// everything is the whole configuration, printed.
func (r *room) everything() string {
	r.t.Helper()
	var b strings.Builder
	for _, line := range []string{"vm config 100", "vm config 101", "vm config 118", "ha list", "storage list --output json"} {
		out := r.Must("n1", line).out
		if strings.HasPrefix(line, "storage") {
			out = regexp.MustCompile(`\d+`).ReplaceAllString(out, "N") // capacities change
		}
		// The test itself tries with descriptions whether writes work.
		b.WriteString(line + "\n" + regexp.MustCompile(`(?m)^description:.*\n\s*`).ReplaceAllString(out, ""))
	}
	return b.String()
}

// startTime is how long a command line takes that asks nobody.
func (r *room) startTime() (slowest time.Duration) {
	r.t.Helper()
	for range 3 {
		slowest = max(slowest, r.Must("n1", "version").took)
	}
	return slowest
}

// write changes a guest's note; "" deletes it.
func (r *room) write(g *guest, note string) error {
	set, del := map[string]string{"description": note}, []string(nil)
	if note == "" {
		set, del = nil, []string{"description"}
	}
	return r.API("n1").SetGuestConfig(r.ctx(3*time.Second), "n1", g.id, set, del, "")
}

// mustRefuseWrite demands that a write is refused for want of a quorum, within a second.
func (r *room) mustRefuseWrite(g *guest) {
	r.t.Helper()
	begin := time.Now()
	err := r.write(g, "changed")
	took := time.Since(begin)
	if !errors.Is(err, model.ErrNoQuorum) || took > time.Second {
		r.t.Errorf("a write right after the loss of the quorum: %v after %v", err, took)
	}
	r.t.Logf("%v: %v", took.Round(time.Millisecond), err)
}
