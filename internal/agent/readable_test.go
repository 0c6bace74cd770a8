package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
)

func TestWhatAFileSaidBeforeStaysInForceAlsoAfterARestart(t *testing.T) {
	n := haNode(t)
	n.put(model.ManagerKey, `{"node":"n1","term":1}`)
	n.put(datacenterKey, "ha: shutdown_policy=freeze\n")
	n.m.manager.noteReadable(t.Context())
	want, err := readCluster(n.m.mirror.Snapshot(), &rulebook{})
	must(t, err)
	for _, key := range []string{haResourcesKey, storageCfgKey, haRulesKey, haGroupsKey, datacenterKey} {
		n.put(key, "nothing: of\nthis can be read\n")
	}
	n.m.manager.noteReadable(t.Context()) // what cannot be read is not kept
	got, err := readCluster(n.m.mirror.Snapshot(), &rulebook{})
	must(t, err)
	if diff := cmp.Diff(want.states, got.states); diff != "" {
		t.Errorf("resources:\n%s", diff)
	}
	if len(got.storages) != len(want.storages) || got.policy.Shutdown != "freeze" {
		t.Errorf("got %d storages and %+v", len(got.storages), got.policy)
	}
	set, err := n.m.starter.storages.read(t.Context())
	if err != nil || len(set.all) != len(want.storages) {
		t.Errorf("a start finds %d storages: %v", len(set.all), err)
	}
}
