package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// interfere lets another node change the key just before each of this node's next writes of it.
func (n *node) interfere(key string, times int) {
	n.st.onTxn(func(tx store.Txn) error {
		if times > 0 && len(tx.Then) > 0 && tx.Then[0].Key == key {
			times--
			putKey(n.t, n.other, key, n.get(key)+"theirs ")
		}
		return nil
	})
}

func TestAnEditIsRepeatedWhenSomebodyElseWasFaster(t *testing.T) {
	n := newNode(t)
	n.interfere("config/x", 4)
	tries := 0
	must(t, editFile(t.Context(), n.st, "change x", "config/x", func(old []byte) ([]byte, error) {
		tries++
		return append(old, "mine"...), nil
	}))
	if got := n.get("config/x"); got != "theirs theirs theirs theirs mine" || tries != 5 {
		t.Errorf("after %d tries: %s", tries, got)
	}
}

func TestAnEditGivesUpWithASentence(t *testing.T) {
	n := newNode(t)
	n.interfere("config/x", 100)
	tries := 0
	err := editFile(t.Context(), n.st, "change x", "config/x", func([]byte) ([]byte, error) { tries++; return []byte("mine"), nil })
	refused(t, err, model.ErrConflict, "change x: someone else changed it at the same moment: look again and repeat")
	if strings.Contains(n.get("config/x"), "mine") || tries != 5 {
		t.Errorf("after %d tries: %s", tries, n.get("config/x"))
	}
}

func TestAnEditThatRefusesWritesNothing(t *testing.T) {
	n := newNode(t)
	want := n.put("config/x", "old")
	no := errors.New("no")
	if err := editFile(t.Context(), n.st, "change x", "config/x", func([]byte) ([]byte, error) { return []byte("new"), no }); !errors.Is(err, no) {
		t.Error(err)
	}
	if rev := n.cluster.Revision(); rev != want {
		t.Errorf("something was written: revision %d after %d", rev, want)
	}
	n.st.setQuorum(false)
	err := editFile(t.Context(), n.st, "change x", "config/x", func([]byte) ([]byte, error) { return []byte("new"), nil })
	refused(t, err, model.ErrNoQuorum, "change x: no quorum: most of the cluster's nodes do not answer, so nothing can be changed now (see `sauh cluster status`)")
}

func (n *node) set(digest string, del string, pairs ...string) error {
	n.t.Helper()
	values := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i]] = pairs[i+1]
	}
	err := n.m.roles.Guests.SetConfig(n.t.Context(), 100, values, strings.Fields(del), digest)
	n.follow()
	return err
}

func TestAConfigurationIsChangedUnderItsDigest(t *testing.T) {
	n := newNode(t)
	key := model.GuestConfigKey("n1", 100)
	n.put(key, "#web\ncores: 2\nmemory: 512\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n")
	c, err := n.m.roles.Guests.Config(t.Context(), 100)
	must(t, err)
	must(t, n.set(c.Digest, "memory", "cores", "4", "name", "web"))
	if got := n.get(key); got != "#web\ncores: 4\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nname: web\n" {
		t.Errorf("the file is now\n%s", got)
	}
	before := n.get(key)
	refused(t, n.set(c.Digest, "", "cores", "8"), model.ErrConflict, "detected modified configuration - file changed by other user? Try again.")
	for name, err := range map[string]error{
		"cores":  n.set("", "", "memory", "1024", "cores", "many"),
		"wheels": n.set("", "wheels", "memory", "1024"),
		"net1":   n.set("", "", "memory", "1024", "net1", "tin-can"),
		"boot":   n.set("", "net0", "memory", "1024", "boot", "order=net0"),
		"tags":   n.set("", "", "memory", "1024", "tags", "ä"),
	} {
		var inv *model.InvalidError
		if !errors.As(err, &inv) || inv.Param != name {
			t.Errorf("a wrong %s: %v", name, err)
		}
	}
	if got := n.get(key); got != before {
		t.Errorf("a refused change made it\n%s", got)
	}
	must(t, n.set("", "", "cores", "8"))
}

func TestADiskThatIsTakenAwayKeepsItsVolume(t *testing.T) {
	n := newNode(t)
	key := model.GuestConfigKey("n1", 100)
	n.put(key, "virtio0: nas:100/a.raw,size=1G\nunused0: nas:100/b.raw\nscsi0: none,media=cdrom\n")
	must(t, n.set("", "virtio0 scsi0"))
	if got := n.get(key); got != "unused0: nas:100/b.raw\nunused1: nas:100/a.raw\n" {
		t.Errorf("the file is now\n%s", got)
	}
	for _, value := range []string{"nas:4", "nas:0,import-from=/image", "/disk,import-from=/image"} {
		var inv *model.InvalidError
		if err := n.set("", "", "virtio3", value); !errors.As(err, &inv) || inv.Param != "virtio3" {
			t.Errorf("%s for a guest that exists: %v", value, err)
		}
	}
}

func TestAVolumeIsOneDiskOrUnused(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	key := model.GuestConfigKey("n1", 100)
	n.put(key, "virtio0: nas:100/a.raw,size=1G\n")
	must(t, n.set("", "virtio0"))
	must(t, n.set("", "", "scsi1", "nas:100/a.raw,discard=on"))
	if got := n.get(key); got != "scsi1: nas:100/a.raw,discard=on\n" {
		t.Errorf("attached again it is\n%s", got)
	}
	err := n.set("", "", "virtio0", "nas:100/a.raw")
	refused(t, err, model.ErrInvalid, "virtio0: nas:100/a.raw is the guest's scsi1 already: a volume can be one disk only")
	must(t, n.set("", "", "scsi1", "nas:100/b.raw"))
	if got := n.get(key); got != "unused0: nas:100/a.raw\nscsi1: nas:100/b.raw\n" {
		t.Errorf("with another volume it is\n%s", got)
	}
	must(t, n.set("", "", "scsi1", "nas:100/b.raw,ro=1"))
	if got := n.get(key); got != "unused0: nas:100/a.raw\nscsi1: nas:100/b.raw,ro=1\n" {
		t.Errorf("with another option it is\n%s", got)
	}
	volume := n.allocate("nas", 200)
	if err := n.create(200, "virtio0", volume, "virtio1", volume); !errors.Is(err, model.ErrInvalid) {
		t.Errorf("a new guest with one volume twice: %v", err)
	}
}

// The digest is compared with the file that is written over, not with the one that was looked at first.
func TestADigestIsComparedAgainAfterAConflict(t *testing.T) {
	n := newNode(t)
	key := model.GuestConfigKey("n1", 100)
	n.put(key, "cores: 2\n")
	first := true
	n.st.onTxn(func(tx store.Txn) error {
		if first {
			first = false
			putKey(t, n.other, key, "cores: 3\n")
		}
		return nil
	})
	err := n.set(pveconf.Digest([]byte("cores: 2\n")), "", "cores", "4")
	refused(t, err, model.ErrConflict, "detected modified configuration - file changed by other user? Try again.")
	if got := n.get(key); got != "cores: 3\n" {
		t.Errorf("the file is now\n%s", got)
	}
}

func TestAConfigurationThatCannotBeReadIsReportedWithItsLine(t *testing.T) {
	n := newNode(t)
	key := model.GuestConfigKey("n1", 100)
	n.put(key, "name: web\ncores: many\n")
	_, config := n.m.roles.Guests.Config(t.Context(), 100)
	for what, err := range map[string]error{
		"set":   n.set("", "", "cores", "2"),
		"show":  config,
		"start": n.m.starter.start(t.Context(), startRequest{id: 100, log: t.Logf}),
	} {
		var inv *model.InvalidError
		if !errors.As(err, &inv) || inv.Line != 2 || inv.Param != "cores" || !strings.Contains(err.Error(), "line 2: cores: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if rows, err := n.m.roles.Guests.List(t.Context()); err != nil || len(rows) != 1 || rows[0].Node != "n1" {
		t.Errorf("the guest's owner is not known any more: %v %v", rows, err)
	}
	n.put(storageCfgKey, "dir: nas\n\tshared maybe\n\tpath /x\n")
	n.put(haResourcesKey, "\nvm: 7\n")
	stores, ha := n.m.roles.Storages, n.m.roles.HA
	_, list := stores.ListStorages(t.Context())
	_, resources := ha.HAResources(t.Context())
	for what, err := range map[string]error{
		"list storages": list, "add a storage": stores.AddStorage(t.Context(), "two", map[string]string{"type": "dir", "path": t.TempDir()}),
		"list resources": resources, "change one": ha.HASet(t.Context(), "vm:100", api.Edit{Set: map[string]string{"comment": "x"}}),
	} {
		var inv *model.InvalidError
		if !errors.As(err, &inv) || inv.Line != 2 {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n.get(haResourcesKey) != "\nvm: 7\n" {
		t.Error("a file that cannot be read was written over")
	}
}

func TestAGuestHasOneOperationAtATime(t *testing.T) {
	told := 0
	l := newGuestLocks(func() { told++ })
	unlock, err := l.tryLock(100, "start")
	must(t, err)
	_, err = l.tryLock(100, "stop")
	refused(t, err, model.ErrBusy, "guest 100 is busy (start): wait until that is done")
	other, err := l.tryLock(101, "destroy")
	must(t, err)
	if got := fmt.Sprint(l.holders()); got != "map[100:start 101:destroy]" {
		t.Error(got)
	}
	unlock()
	other()
	if _, err := l.tryLock(100, "stop"); err != nil || told != 2 {
		t.Errorf("after both ended: %v, told %d times", err, told)
	}
}

func TestATaskHoldsTheGuestsLockUntilItsEnd(t *testing.T) {
	n := newNode(t)
	end := make(chan struct{})
	upid, err := n.m.operations.tasks.start("qmstart", 100, "start", func(context.Context, *task.Task) error { <-end; return nil })
	must(t, err)
	if _, err := n.m.operations.tasks.start("qmstop", 100, "stop", nil); !errors.Is(err, model.ErrBusy) {
		t.Errorf("a second task: %v", err)
	}
	close(end)
	must(t, n.a.tasks.Wait(t.Context(), upid))
	if held := n.m.worker.locks.holders(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}
