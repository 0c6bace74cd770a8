package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/beacon"
	"sauh.dev/sauh/internal/core/model"
)

func TestBeaconsGoToEveryMemberUnderTheClustersSecret(t *testing.T) {
	n := haNode(t)
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Mgmt: "10.0.0.2", Cluster: "nowhere"})))
	want := []beacon.Member{
		{Name: "n1", Addrs: [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.1.1")}},
		{Name: "n2", Addrs: [2]netip.Addr{netip.MustParseAddr("10.0.0.2"), {}}},
	}
	if diff := cmp.Diff(want, n.m.beacons.Members(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	keys := n.m.beacons.Keys()
	if len(keys) != 1 || len(keys[0].Secret) != 32 {
		t.Fatalf("keys %v", keys)
	}
	n.put(caKeyKey, "another cluster's")
	if other := n.m.beacons.Keys(); string(other[0].Secret) == string(keys[0].Secret) {
		t.Error("two clusters have one secret")
	}
	n.leased(7)
	n.m.beacons.lease = n.lease
	if got := n.m.beacons.Epoch(); got != 7 {
		t.Errorf("epoch %d", got)
	}
}

// What is not certain is left out: a QEMU that waits for a migration, or that nobody can ask.
func TestABeaconNamesOnlyGuestsOfWhichItIsSure(t *testing.T) {
	n := haNode(t)
	n.runs(100)
	n.m.procs.get(100).incoming.Store(true)
	if got := n.m.beacons.Running(t.Context()); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	n.m.beacons.rest(100)
	n.m.procs.get(100).incoming.Store(false)
	if got := n.m.beacons.Running(t.Context()); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestANodeWithoutBeaconsIsHeardOfByItsRenewals(t *testing.T) {
	n := haNode(t)
	if _, ok := n.m.beacons.heard("n2"); ok || len(n.m.beacons.alarms()) != 0 {
		t.Error("beacons are heard before there are any")
	}
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":3,"seq":1}`)
	if signs := n.m.fencing.signs("n2"); len(signs) != 1 {
		t.Errorf("%+v", signs)
	}
}
