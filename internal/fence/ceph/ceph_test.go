package ceph_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/fence/ceph"
	"sauh.dev/sauh/internal/fence/fencetest"
)

func disk(image string) fence.Disk { return fence.Disk{Storage: "fast", Writable: true, Image: image} }

// setUp has four guests on n1: two by the book, one half on another storage, one whose image somebody else has open.
func setUp(t *testing.T) (*fencetest.Ceph, ceph.Config) {
	c := fencetest.NewCeph(t)
	c.Image("rbd/vm-100", "10.77.0.11:0/1000")
	c.Image("rbd/vm-101a", "v1:10.77.0.11:0/1001")
	c.Image("rbd/vm-101b", "10.10.1.1:0/1002", "10.77.0.11:0/1003")
	c.Image("rbd/vm-102", "10.77.0.11:0/1004")
	c.Image("rbd/vm-103", "10.77.0.11:0/1005", "10.77.0.12:0/1006")
	local := fence.Disk{Storage: "local", Writable: true}
	iso := fence.Disk{Storage: "local"}
	return c, ceph.Config{
		Node: "n1", Addresses: []string{"10.10.1.1", "10.77.0.11"}, Storages: []string{"fast"}, Conf: "/etc/ceph/ceph.conf", User: "admin",
		Guests: []fence.Guest{
			{VMID: 100, Disks: []fence.Disk{disk("rbd/vm-100"), iso}},
			{VMID: 101, Disks: []fence.Disk{disk("rbd/vm-101a"), disk("rbd/vm-101b")}},
			{VMID: 102, Disks: []fence.Disk{disk("rbd/vm-102"), local}},
			{VMID: 103, Disks: []fence.Disk{disk("rbd/vm-103")}},
			{VMID: 104, Disks: []fence.Disk{iso}},
			{VMID: 105, Disks: []fence.Disk{{Storage: "fast", Writable: true, Image: "--help"}}},
			{VMID: 106, Disks: []fence.Disk{disk("rbd/gone")}},
		},
		Run: c.Run, Now: func() time.Duration { return 42 * time.Second }, Wall: time.Now,
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestANodeIsRefusedByItsAddressesAndTheGuestsThatThatCoversAreNamed(t *testing.T) {
	c, cfg := setUp(t)
	b := ceph.New(cfg)
	if ev, err := b.Ask(t.Context()); err != nil || ev.Refusal != nil {
		t.Fatalf("before: %+v, %v", ev, err)
	}
	want := fence.Evidence{Refusal: &fence.Refusal{At: 42 * time.Second, Guests: []model.VMID{100, 101}}}
	for range 2 {
		ev, err := b.Shoot(within(t, 10*time.Second))
		if diff := cmp.Diff(want, ev); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	got := slices.Compact(slices.Sorted(slices.Values(c.Blocked())))
	if diff := cmp.Diff([]string{"10.10.1.1:0/0", "10.77.0.11:0/0"}, got); diff != "" {
		t.Errorf("blocklist (-want +got):\n%s", diff)
	}
	if ev, err := b.Ask(t.Context()); err != nil || !cmp.Equal(want, ev) {
		t.Errorf("after: %+v, %v", ev, err)
	}
}

func TestAnEntryThatExpiresIsNoRefusal(t *testing.T) {
	c, cfg := setUp(t)
	c.Block("10.10.1.1", ceph.Expiry)
	c.Block("10.77.0.11", 3600)
	if ev, err := ceph.New(cfg).Ask(t.Context()); err != nil || ev.Refusal != nil {
		t.Errorf("%+v, %v", ev, err)
	}
}

func TestAnEntryOfOneClientIsNoRefusalOfTheNode(t *testing.T) {
	c, cfg := setUp(t)
	c.Block("10.10.1.1:0/1002", ceph.Expiry)
	c.Block("10.77.0.11:0/1000", ceph.Expiry)
	if ev, err := ceph.New(cfg).Ask(t.Context()); err != nil || ev.Refusal != nil {
		t.Errorf("%+v, %v", ev, err)
	}
}

func TestWhatIsNotListedAfterwardsIsNotVerified(t *testing.T) {
	c, cfg := setUp(t)
	c.Fault("forget")
	if ev, err := ceph.New(cfg).Shoot(within(t, 10*time.Second)); !errors.Is(err, fence.ErrNotVerified) {
		t.Errorf("%+v, %v", ev, err)
	}
}

func TestAClusterThatRefusesOrHangsProvesNothing(t *testing.T) {
	c, cfg := setUp(t)
	c.Fault("fail")
	if ev, err := ceph.New(cfg).Shoot(within(t, 10*time.Second)); err == nil || ev.Refusal != nil {
		t.Errorf("%+v, %v", ev, err)
	}
	for _, fault := range []string{"hang", "rbd-hang"} {
		c, cfg := setUp(t)
		c.Fault(fault)
		start := time.Now()
		ev, err := ceph.New(cfg).Shoot(within(t, 500*time.Millisecond))
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || ev.Refusal != nil || took > 5*time.Second {
			t.Errorf("%s: %+v, %v after %v", fault, ev, err, took)
		}
	}
}

func TestANodeWithoutAddressIsNotRefusedByHalf(t *testing.T) {
	for _, addresses := range [][]string{nil, {"10.77.0.11", "127.0.0.1"}, {"10.77.0.11", "n1"}, {"0.0.0.0"}} {
		c, cfg := setUp(t)
		cfg.Addresses = addresses
		if _, err := ceph.New(cfg).Shoot(t.Context()); !errors.Is(err, ceph.ErrAddress) || len(c.Blocked()) > 0 {
			t.Errorf("%v: %v, %v", addresses, err, c.Blocked())
		}
	}
}

func agreed(context.Context) error { return nil }

func TestEntriesAreTakenBackOnlyOnceTheGuestsAreDeadAndOnlyOurs(t *testing.T) {
	c, cfg := setUp(t)
	b := ceph.New(cfg)
	if _, err := b.Shoot(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	c.Block("10.77.0.12", ceph.Expiry) // another node
	c.Block("10.77.0.11:0/77", 3600)   // Ceph's own
	before := c.Blocked()
	for _, dead := range []fence.Dead{{}, {Node: "n1"}, {Node: "n2", Epoch: 3}} {
		if err := b.Release(t.Context(), dead, agreed); err == nil || !cmp.Equal(before, c.Blocked()) {
			t.Errorf("%+v: %v", dead, err)
		}
	}
	shot := errors.New("it was shot again")
	if err := b.Release(t.Context(), fence.Dead{Node: "n1", Epoch: 3}, func(context.Context) error { return shot }); !errors.Is(err, shot) || !cmp.Equal(before, c.Blocked()) {
		t.Errorf("a node that was shot meanwhile: %v", err)
	}
	for range 2 {
		if err := b.Release(t.Context(), fence.Dead{Node: "n1", Epoch: 3}, agreed); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"10.77.0.12:0/0", "10.77.0.11:0/77"}, c.Blocked()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestARehearsalTriesTheListAndLeavesNothing(t *testing.T) {
	c, cfg := setUp(t)
	cfg.Guests = cfg.Guests[:2]
	if err := ceph.New(cfg).Rehearse(within(t, 10*time.Second)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{}, c.Blocked(), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.Fault("fail")
	if err := ceph.New(cfg).Rehearse(t.Context()); err == nil {
		t.Error("a user without permission passed")
	}
}
