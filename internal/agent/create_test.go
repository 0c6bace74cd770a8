package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// run waits for the task that a method of the API began and returns its error.
func (n *node) run(upid string, err error) error {
	n.t.Helper()
	if err != nil {
		return err
	}
	return n.a.tasks.Wait(n.t.Context(), upid)
}

func (n *node) create(id model.VMID, params ...string) error {
	n.t.Helper()
	r := api.CreateGuestRequest{VMID: id, Params: map[string]string{}}
	for i := 0; i < len(params); i += 2 {
		r.Params[params[i]] = params[i+1]
	}
	err := n.run(n.m.roles.Guests.Create(n.t.Context(), r))
	n.follow()
	return err
}

// conf reads one of this node's guests from the store.
func (n *node) conf(id model.VMID) map[string]string {
	n.t.Helper()
	g, err := pveconf.ParseGuest([]byte(n.get(model.GuestConfigKey("n1", id))))
	must(n.t, err)
	return g.Values()
}

// volumes lists the names of what a storage holds.
func (n *node) volumes(name string) []string {
	n.t.Helper()
	d, err := n.m.starter.storages.driver(name)
	must(n.t, err)
	vols, err := d.List(n.t.Context())
	must(n.t, err)
	var ids []string
	for _, v := range vols {
		ids = append(ids, v.ID)
	}
	return ids
}

func needsQemuImg(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
}

func TestAGuestIsCreatedWithItsVolumes(t *testing.T) {
	needsQemuImg(t)
	n := newNode(t)
	dir := n.storage("nas", "\tshared 1\n")
	d, err := n.m.starter.storages.driver("nas")
	must(t, err)
	existing, err := d.Allocate(t.Context(), storage.Allocation{VMID: 100, Name: "vm-100-old", Size: 1 << 20})
	must(t, err)
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, make([]byte, 3<<20), 0o600))
	must(t, n.create(100,
		"name", "web", "memory", "64",
		"virtio0", "nas:0.25,format=qcow2,discard=on",
		"virtio1", "nas:0,import-from="+image,
		"scsi0", existing.ID+",ro=1",
		"scsi1", "/dev/zero",
		"scsi2", "none,media=cdrom",
		"net0", "virtio,bridge=vmbr0",
	))
	got := n.conf(100)
	mac := regexp.MustCompile(`BC:24:11(:[0-9A-F]{2}){3}`)
	uuid := regexp.MustCompile(`uuid=[0-9a-f-]{36}`)
	got["net0"] = mac.ReplaceAllString(got["net0"], "MAC")
	got["smbios1"] = uuid.ReplaceAllString(got["smbios1"], "UUID")
	got["meta"] = regexp.MustCompile(`ctime=\d+`).ReplaceAllString(got["meta"], "NOW")
	want := map[string]string{
		"name": "web", "memory": "64",
		"virtio0": "nas:100/vm-100-disk-0.qcow2,discard=on,size=256M",
		"virtio1": "nas:100/vm-100-disk-1.raw,size=3M",
		"scsi0":   "nas:100/vm-100-old.raw,ro=1",
		"scsi1":   "/dev/zero",
		"scsi2":   "none,media=cdrom",
		"net0":    "virtio=MAC,bridge=vmbr0",
		"smbios1": "UUID", "meta": "creation-qemu=10.0.2,NOW",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "images/100/vm-100-disk-1.raw")); err != nil || len(data) != 3<<20 {
		t.Errorf("the imported image has %d bytes: %v", len(data), err)
	}
	if owner, err := n.m.roles.Guests.Owner(t.Context(), 100); owner != "n1" || err != nil {
		t.Errorf("the owner is %q: %v", owner, err)
	}
	if next, err := n.m.roles.Guests.NextID(t.Context()); next != 101 || err != nil {
		t.Errorf("the next id is %s: %v", next, err)
	}
}

func TestMalformedValuesOfANewGuestNameTheirKeyAndMakeNothing(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "\tshared 1\n")
	n.storage("off", "\tdisable 1\n")
	for _, c := range []struct{ key, value, want string }{
		{"virtio1", "nas:", ""},
		{"virtio1", "nas:0", "a new volume needs a size: write nas:4 for 4 GiB, or nas:0,import-from=FILE"},
		{"virtio1", "nas:-4", "a new volume needs a size: write nas:4 for 4 GiB, or nas:0,import-from=FILE"},
		{"virtio1", "nas:1G", "the size of a new volume is a number of GiB: write nas:4 for 4 GiB, not nas:1G"},
		{"virtio1", "nas:NaN", "a new volume needs a size: write nas:4 for 4 GiB, or nas:0,import-from=FILE"},
		{"virtio1", "nas:-4,import-from=/image", ""},
		{"virtio1", "nas:Inf,import-from=/image", ""},
		{"virtio1", "nas:NaN,import-from=/image", ""},
		{"virtio1", "nas:1e30", ""},
		{"virtio1", "other:4", "storage 'other' does not exist"},
		{"virtio1", "off:4", "storage 'off' is disabled"},
		{"virtio1", "nas:100/vm-100-gone.raw", ""},
		{"virtio1", "nas:4,format=zip", ""},
		{"virtio1", "nas:4,colour=red", ""},
		{"virtio99", "nas:4", ""},
		{"scsi1", "4", ""},
		{"net0", "virtio=bad", ""},
		{"net0", "tin-can", ""},
		{"cores", "many", ""},
		{"memory", "-1", ""},
		{"tags", "a;b,c!", `"c!" is not a tag: use letters, digits, '_', '-', '+' and '.'; several are separated by ';'`},
		{"boot", "order=scsi9", "the guest has no scsi9 to boot from"},
		{"ide0", "nas:1", "this version makes no such disk: use virtio[n] or scsi[n]"},
		{"sata1", "file=nas:1,size=1G", "this version makes no such disk: use virtio[n] or scsi[n]"},
		{"wheels", "4", "a guest's configuration has no such key"},
	} {
		err := n.create(100, "virtio0", "nas:1", c.key, c.value)
		var inv *model.InvalidError
		if !errors.As(err, &inv) || inv.Param != c.key || c.want != "" && inv.Msg != c.want {
			t.Errorf("%s: %s is answered with %v", c.key, c.value, err)
		}
		if vols := n.volumes("nas"); len(vols) > 0 || n.get(model.GuestConfigKey("n1", 100)) != "" {
			t.Fatalf("%s: %s left %v", c.key, c.value, vols)
		}
	}
}

func TestWhatIsOnlyKeptIsSaidWhenAGuestIsMade(t *testing.T) {
	n := newNode(t)
	upid, err := n.m.roles.Guests.Create(t.Context(), api.CreateGuestRequest{VMID: 100, Params: map[string]string{
		"ide2": "none,media=cdrom", "net0": "virtio", "boot": "order=net0", "tags": "a;b", "cpulimit": "2",
	}})
	must(t, n.run(upid, err))
	lines, _, err := n.a.tasks.TaskLog(t.Context(), upid, 0, 0)
	must(t, err)
	for _, key := range []string{"cpulimit", "ide2"} {
		want := "WARN: " + key + " is kept but has no effect in this version"
		if !slices.ContainsFunc(lines, func(l api.LogLine) bool { return strings.HasSuffix(l.T, want) }) {
			t.Errorf("the log lacks %s: %v", want, lines)
		}
	}
}

func TestAStorageHoldsImagesAlone(t *testing.T) {
	n := newNode(t)
	for _, content := range []string{"", "iso", "images,iso"} {
		err := n.m.roles.Storages.AddStorage(t.Context(), "nas", map[string]string{"type": "dir", "path": t.TempDir(), "content": content})
		refused(t, err, model.ErrInvalid, "content: a storage of this version holds images and nothing else: write images, or leave it out")
	}
}

func TestADirectoryIsOneStorage(t *testing.T) {
	n := newNode(t)
	dir := n.storage("nas", "")
	err := n.m.roles.Storages.AddStorage(t.Context(), "two", map[string]string{"type": "dir", "path": dir})
	refused(t, err, model.ErrInvalid, "path: storage nas has the directory "+dir+" already")
	list, err := n.m.roles.Storages.ListStorages(t.Context())
	if err != nil || len(list) != 1 || list[0].LateWrites {
		t.Errorf("the storages are %+v: %v", list, err)
	}
}

func TestAStoppedGuestHasNoConsole(t *testing.T) {
	n := newNode(t)
	n.put(model.GuestConfigKey("n1", 100), "name: web\n")
	_, err := n.m.roles.Guests.Console(t.Context(), 100)
	refused(t, err, model.ErrNotFound, "guest 100 is stopped and has no console: start it with `sauh vm start 100`")
}

func TestAnIdThatIsTakenIsRefused(t *testing.T) {
	n := newNode(t)
	n.put(model.GuestConfigKey("n2", 100), "name: theirs\n")
	refused(t, n.create(100), model.ErrExists, "unable to create VM 100 - VM 100 already exists on node 'n2'")
	for _, id := range []model.VMID{0, 99, 1e9} {
		if err := n.create(id); !errors.Is(err, model.ErrInvalid) || !strings.HasPrefix(err.Error(), "vmid: ") {
			t.Errorf("the id %d: %v", id, err)
		}
	}
}

func TestNothingIsCreatedWithoutAQuorum(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	n.st.setQuorum(false)
	if err := n.run(n.m.roles.Guests.Create(t.Context(), api.CreateGuestRequest{VMID: 100, Params: map[string]string{"virtio0": "nas:1"}})); !errors.Is(err, model.ErrNoQuorum) {
		t.Error(err)
	}
	if vols := n.volumes("nas"); len(vols) > 0 {
		t.Errorf("volumes were made: %v", vols)
	}
}

// Another node has taken the id a moment ago, so this one cannot see it yet.
func TestTheVolumesGoAgainWhenTheIdIsLostToAnotherNode(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	n.put(model.VMIDPrefix+"100", "n2")
	refused(t, n.create(100, "virtio0", "nas:1", "scsi0", "nas:1"), model.ErrExists, "unable to create VM 100 - VM 100 already exists")
	if vols := n.volumes("nas"); len(vols) > 0 {
		t.Errorf("volumes are left: %v", vols)
	}
	if n.get(model.GuestConfigKey("n1", 100)) != "" || n.get(model.VMIDPrefix+"100") != "n2" {
		t.Error("the guest was created all the same")
	}
}

func TestTheVolumesGoAgainWhenALaterOneCannotBeMade(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	err := n.create(100, "scsi0", "nas:1", "virtio0", "nas:0,import-from=/no/such/image")
	if err == nil || !strings.HasPrefix(err.Error(), "virtio0: ") {
		t.Errorf("the error does not name the disk: %v", err)
	}
	if vols := n.volumes("nas"); len(vols) > 0 || n.get(model.GuestConfigKey("n1", 100)) != "" {
		t.Errorf("volumes are left: %v", vols)
	}
}

func TestTheVolumesGoAgainWhenTheTaskIsStopped(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	n.st.onTxn(func(tx store.Txn) error { go n.a.tasks.Stop(errors.New("stop")); return context.Canceled })
	if err := n.create(100, "scsi0", "nas:1"); err == nil {
		t.Error("the guest was created")
	}
	if vols := n.volumes("nas"); len(vols) > 0 {
		t.Errorf("volumes are left: %v", vols)
	}
}

// No quorum may mean that the guest was created all the same, now or a little later: its disks must not be gone then.
func TestVolumesAreKeptWhileItIsNotKnownWhetherTheGuestWasCreated(t *testing.T) {
	for _, committed := range []bool{true, false} {
		t.Run(fmt.Sprintf("committed %t", committed), func(t *testing.T) {
			n := newNode(t)
			n.storage("nas", "")
			n.st.onTxn(func(tx store.Txn) error {
				if committed {
					_, err := n.st.Store.Txn(t.Context(), tx)
					must(t, err)
				}
				return store.ErrNoQuorum
			})
			err := n.create(100, "virtio0", "nas:1")
			if committed != (err == nil) || err != nil && !errors.Is(err, model.ErrNoQuorum) {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{"nas:100/vm-100-disk-0.raw"}, n.volumes("nas")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestACardWithoutAnAddressGetsOneOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		got, err := withMAC("net0", "virtio,bridge=vmbr0,firewall=1")
		must(t, err)
		if !regexp.MustCompile(`^virtio=BC:24:11:[0-9A-F]{2}:[0-9A-F]{2}:[0-9A-F]{2},bridge=vmbr0,firewall=1$`).MatchString(got) {
			t.Fatal(got)
		}
		seen[got] = true
	}
	if len(seen) < 99 {
		t.Errorf("of 100 cards %d have an address of their own", len(seen))
	}
	for _, value := range []string{"virtio=02:00:00:00:00:01,bridge=vmbr0", "model=e1000,macaddr=02:00:00:00:00:01"} {
		if got, err := withMAC("net0", value); got != value || err != nil {
			t.Errorf("%s became %s: %v", value, got, err)
		}
	}
	var inv *model.InvalidError
	if _, err := withMAC("net3", "virtio,bridge=a bridge"); !errors.As(err, &inv) || inv.Param != "net3" {
		t.Errorf("a malformed value: %v", err)
	}
}

func TestSizesArePrintedAsProxmoxVEDoes(t *testing.T) {
	for bytes, want := range map[int64]string{4 << 30: "4G", 5 << 29: "2560M", 3 << 20: "3M", 1025 << 10: "1025K", 1000: "1000"} {
		if got := printSize(bytes); got != want {
			t.Errorf("%d bytes are %s, want %s", bytes, got, want)
		}
	}
}

func (n *node) destroyGuest(id model.VMID) error {
	n.t.Helper()
	err := n.run(n.m.roles.Guests.Destroy(n.t.Context(), id))
	n.follow()
	return err
}

func TestDestroyRefusesWhatIsInUse(t *testing.T) {
	n := newNode(t)
	key := model.GuestConfigKey("n1", 100)
	n.put(key, "name: mine\n")
	n.put(model.GuestConfigKey("n2", 200), "name: theirs\n")
	ended := n.runs(100)
	refused(t, n.destroyGuest(100), model.ErrBusy, "VM 100 is running - destroy failed: stop it first")
	ended()
	n.put(haResourcesKey, "vm: 100\n\tstate stopped\n")
	refused(t, n.destroyGuest(100), model.ErrBusy, "guest 100 is an HA resource: run `sauh ha remove vm:100` first")
	n.put(haResourcesKey, "")
	for _, yes := range []string{"1", "yes", "on"} {
		n.put(key, "protection: "+yes+"\n")
		refused(t, n.destroyGuest(100), model.ErrBusy, "can't remove VM 100 - protection mode enabled")
	}
	n.put(key, "protection: 0\n")
	unlock, err := n.m.worker.locks.tryLock(100, "start")
	must(t, err)
	refused(t, n.destroyGuest(100), model.ErrBusy, "guest 100 is busy (start): wait until that is done")
	unlock()
	if err := n.destroyGuest(200); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("another node's guest: %v", err)
	}
	if err := n.destroyGuest(300); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("no guest: %v", err)
	}
	n.put(model.IntentPrefix+"100", "{}")
	if err := n.destroyGuest(100); !errors.Is(err, model.ErrConflict) {
		t.Errorf("a guest that is being migrated: %v", err)
	}
	n.delete(model.IntentPrefix + "100")
	if n.get(key) == "" || n.get(model.GuestConfigKey("n2", 200)) == "" {
		t.Fatal("a refused destroy deleted the guest")
	}
	must(t, n.destroyGuest(100))
	if n.get(key) != "" {
		t.Error("the file is still there")
	}
}

// Its volume is another guest's disk, too, as its file says or as it runs.
func TestDestroyLeavesNothingHalfDoneWhenAnotherGuestHasTheVolume(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "\tshared 1\n")
	must(t, n.create(100, "virtio0", "nas:1"))
	const volume = "nas:100/vm-100-disk-0.raw"
	stays := func() {
		t.Helper()
		if n.get(model.GuestConfigKey("n1", 100)) == "" || len(n.volumes("nas")) != 1 {
			t.Error("the guest is half gone")
		}
	}
	n.put(model.GuestConfigKey("n2", 241), "virtio1: "+volume+"\n")
	refused(t, n.destroyGuest(100), model.ErrBusy, "volume nas:100/vm-100-disk-0.raw of guest 100 is also virtio1 of guest 241 on n2: detach it there first")
	stays()
	n.delete(model.GuestConfigKey("n2", 241))
	path, _, err := must1(n.m.starter.storages.driver("nas"))(t).File(t.Context(), volume)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, sys.TryLockRange(f, 100, 200)) // as a QEMU of which nobody knows does
	refused(t, n.destroyGuest(100), model.ErrBusy, "volume nas:100/vm-100-disk-0.raw is in use: stop the guest or the program that has it open")
	stays()
	must(t, f.Close())
	n.runsAs(qemu.Spec{VMID: 241, Disks: []qemu.Disk{{ID: "scsi1", Volume: volume}}})
	refused(t, n.destroyGuest(100), model.ErrBusy, "volume nas:100/vm-100-disk-0.raw of guest 100 is also scsi1 of guest 241, which runs with it on n1: detach it there first")
	stays()
}

func TestDestroyNamesTheVolumesThatStay(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	must(t, n.create(100, "virtio0", "nas:1"))
	spare := n.allocate("nas", 100)
	upid, err := n.m.roles.Guests.Destroy(t.Context(), 100)
	must(t, n.run(upid, err))
	lines, _, err := n.a.tasks.TaskLog(t.Context(), upid, 0, 0)
	must(t, err)
	want := "WARN: volume " + spare + " was made for guest 100 and its configuration did not name it, so it stays: delete it with `sauh storage free " + spare + "`"
	if !slices.ContainsFunc(lines, func(l api.LogLine) bool { return strings.HasSuffix(l.T, want) }) {
		t.Errorf("the log is %v", lines)
	}
	if diff := cmp.Diff([]string{spare}, n.volumes("nas")); diff != "" {
		t.Error(diff)
	}
}

// Between the first look and the lock the guest was started, or became an HA resource or protected from removal.
func TestDestroyLooksAgainUnderTheLock(t *testing.T) {
	n := newNode(t)
	key := model.GuestConfigKey("n1", 100)
	for name, change := range map[string]func() (undo func()){
		"started":     func() func() { return n.runs(100) },
		"HA resource": func() func() { n.put(haResourcesKey, "vm: 100\n"); return func() { n.put(haResourcesKey, "") } },
		"protection":  func() func() { n.put(key, "protection: 1\n"); return func() {} },
	} {
		t.Run(name, func(t *testing.T) {
			n.put(key, "name: mine\n")
			undo := change()
			upid, err := n.a.tasks.Start("qmdestroy", "100", func(ctx context.Context, tk *task.Task) error { return n.m.operations.creation.destroy(ctx, 100, tk) })
			must(t, err)
			if err := n.a.tasks.Wait(t.Context(), upid); !errors.Is(err, model.ErrBusy) {
				t.Errorf("answered with %v", err)
			}
			if n.get(key) == "" {
				t.Error("the file is gone")
			}
			undo()
		})
	}
}

func TestDestroyDeletesTheGuestsOwnVolumesAlone(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "")
	n.storage("vm-100-more", "")
	must(t, n.create(100, "virtio0", "nas:1", "scsi0", "nas:1"))
	must(t, n.create(1100, "virtio0", "nas:1"))
	must(t, n.create(200, "virtio0", "vm-100-more:1"))
	n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	n.put(model.HAStatusPrefix+"vm:100", `{"state":"stopped"}`)
	file := filepath.Join(t.TempDir(), "vm-100-file")
	must(t, os.WriteFile(file, nil, 0o600))
	values := n.conf(100)
	n.put(model.GuestConfigKey("n1", 100), "virtio0: "+values["virtio0"]+"\nunused0: "+strings.Split(values["scsi0"], ",")[0]+
		"\nvirtio2: nas:1100/vm-1100-disk-0.raw\nvirtio3: vm-100-more:200/vm-200-disk-0.raw\nvirtio4: "+file+"\nscsi1: none,media=cdrom\n")
	must(t, n.destroyGuest(100))
	if diff := cmp.Diff([]string{"nas:1100/vm-1100-disk-0.raw"}, n.volumes("nas")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"vm-100-more:200/vm-200-disk-0.raw"}, n.volumes("vm-100-more")); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("a file that is no volume is gone")
	}
	for _, key := range []string{model.GuestConfigKey("n1", 100), model.VMIDPrefix + "100", model.ProtectedPrefix + "100", model.HAStatusPrefix + "vm:100"} {
		if v := n.get(key); v != "" {
			t.Errorf("%s is left: %s", key, v)
		}
	}
	must(t, n.create(100)) // the id is free again
}
