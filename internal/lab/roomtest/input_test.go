//go:build room

package roomtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBadInputIsRefusedAndChangesNothing goes through the commands with what they must refuse.
func TestBadInputIsRefusedAndChangesNothing(t *testing.T) {
	r := open(t)
	r.Guest(101).On("n1")
	r.prepareInput()
	before := r.snapshot()
	for _, c := range badInput() {
		a := r.Refused("n1", c.line, c.want...)
		t.Logf("%s: %s", c.line, strings.TrimSpace(a.err))
		if now := r.snapshot(); now != before {
			t.Fatalf("sauh %s changed something. Before:\n%s\nafter:\n%s", c.line, before, now)
		}
	}
}

// prepareInput makes what the bad input is about: guest 118 idle, guest 117 whose image is held by another
// process, the storage small that is full.
func (r *room) prepareInput() {
	t := r.t
	t.Helper()
	r.Must("n1", "vm create 118 --name idle --memory 64 --virtio0 nas:0.01,format=raw")
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 118") })

	r.Must("n1", "vm create 117 --name held --memory 64 --virtio0 nas:0.01,format=qcow2")
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 117") })
	r.hold("n2", "/srv/nas/images/117/vm-117-disk-0.qcow2")

	r.Shell("n1", "mkdir -p /srv/small && mount -t tmpfs -o size=4m tmpfs /srv/small")
	r.Must("n1", "storage add dir small --path /srv/small")
	t.Cleanup(func() {
		r.Sauh("n1", "storage remove small")
		r.Shell("n1", "umount /srv/small")
	})
	r.Shell("n1", "head -c 16M /dev/urandom > /srv/nas/noise.raw")
	t.Cleanup(func() { r.Shell("n1", "rm /srv/nas/noise.raw") })
}

// hold keeps an image open for writing in a node, as a QEMU does, until the test ends. Whoever looks at the image
// at that moment, as the agent may, has a lock on it too: then the process ends and is started again.
func (r *room) hold(node, file string) {
	r.t.Helper()
	var cmd *exec.Cmd
	var said bytes.Buffer
	ended := make(chan error, 1)
	start := func() {
		said.Reset()
		cmd = r.Exec(context.Background(), node, "qemu-io", "-f", "qcow2", "-c", "sleep 600000", file)
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			r.t.Fatal(err)
		}
		go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(cmd)
	}
	start()
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	image, err := os.Open(filepath.Join(r.NAS(), strings.TrimPrefix(file, "/srv/nas")))
	if err != nil {
		r.t.Fatal(err)
	}
	defer image.Close()
	r.Eventually(file+" is held", patience, func() error {
		select {
		case err := <-ended:
			err = fmt.Errorf("qemu-io ended: %w: %s", cmp.Or(err, errors.New("exit status 0")), said.String())
			start()
			return err
		default:
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: writerLock, Len: 1}
		if err := unix.FcntlFlock(image.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
			return err
		}
		if lock.Type == unix.F_UNLCK {
			return errors.New("nobody writes to it")
		}
		return nil
	})
}

// writerLock is the byte of an image that QEMU locks when it writes to it (block/file-posix.c).
const writerLock = 101

// snapshot is everything that a command could have changed: guests, their configurations, what is protected, volumes, members,
// and the files of the storages.
func (r *room) snapshot() string {
	r.t.Helper()
	var b strings.Builder
	c, ctx := r.API("n1"), r.ctx(patience)
	show := func(what string, v any, err error) {
		if err != nil {
			r.t.Fatalf("%s: %v", what, err)
		}
		fmt.Fprintf(&b, "%s: %+v\n", what, v)
	}
	guests, err := c.Guests(ctx)
	for i := range guests {
		guests[i].Uptime = 0
	}
	show("guests", guests, err)
	for _, g := range guests {
		cfg, err := c.GuestConfig(ctx, g.Node, g.VMID)
		show("configuration", cfg, err)
	}
	resources, err := c.HAResources(ctx)
	show("protected", resources, err)
	for _, name := range []string{"nas", "small"} {
		volumes, err := c.Content(ctx, "n1", name)
		for i := range volumes {
			volumes[i].Used = 0 // a guest writes
		}
		show("content of "+name, volumes, err)
	}
	b.WriteString(r.members("n1"))
	for _, dir := range []string{filepath.Join(r.NAS(), "images"), fmt.Sprintf("/proc/%d/root/srv/small", r.initOf("n1"))} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			b.WriteString(path + "\n")
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return b.String()
}

// badInput are command lines and what their refusals must say.
func badInput() []struct {
	line string
	want []string
} {
	type row = struct {
		line string
		want []string
	}
	say := func(line string, want ...string) row { return row{line, want} }
	const none = "does not exist"
	return []row{
		say("vm create 101 --memory 64", "101", "already exists", "n1"),
		say("vm create 99 --memory 64", "vmid", "99", "100"),
		say("vm create web --memory 64", "web"),
		say("vm create 150 --node n9", "no such cluster node 'n9'"),
		say("vm create 150 --memory lots", "memory"),
		say("vm create 150 --virtio0 nosuch:1", "virtio0", "nosuch", none),
		say("vm create 150 --virtio0 nas:0", "virtio0", "size"),
		say("vm create 150 --virtio0 nas:1,format=vmdk", "vmdk"),
		say("vm create 150 --virtio0 nas:0,import-from=/srv/nas/none.raw", "virtio0", "/srv/nas/none.raw"),
		say("vm create 150 --virtio0 nas:150/vm-150-disk-7.raw", "virtio0", none),
		say("vm create 150 --virtio0 small:0,import-from=/srv/nas/noise.raw", "virtio0", "space", "small"),
		say("vm create 150 --virtio0 small:1", "virtio0", "space", "small"),
		say("vm create 150 --set nonsense=1", "nonsense"),
		say("vm create 150 --net0 virtio,bridge=", "net0"),
		say("vm start 199", "199", none),
		say("vm start 101", "101", "already running"),
		say("vm start 117", "117", "in use by another process"),
		say("vm stop 199", "199", none),
		say("vm stop 118", "118", "not running"),
		say("vm shutdown 199", "199", none),
		say("vm shutdown 118", "118", "not running"),
		say("vm status 199", "199", none),
		say("vm config 199", "199", none),
		say("vm console 199", "199", none),
		say("vm console 118", "118"),
		say("vm destroy 199", "199", none),
		say("vm destroy 101", "101", "running"),
		say("vm set 199 --memory 64", "199", none),
		say("vm set 101", "nothing to change"),
		say("vm set 118 --memory many", "memory"),
		say("vm set 118 --set bogus=1", "bogus"),
		say("vm set 118 --delete bogus", "bogus"),
		say("vm set 118 --memory 128 --digest 0123456789012345678901234567890123456789", "another digest"),
		say("vm migrate 199 --to n2", "199", none),
		say("ha add vm:199", "199", none),
		say("ha add 101x", "101x"),
		say("ha add vm:101 --state happy", "happy", "started"),
		say("ha set vm:101 --state stopped", "101"),
		say("ha remove vm:101", "101"),
		say("storage add dir nas --path /srv/nas", "nas", "already defined"),
		say("storage add dir none --path /srv/none", "/srv/none"),
		say("storage add dir none --path srv", "path"),
		say("storage add dir No_Name! --path /srv/nas", "No_Name!"),
		say("storage remove none", "none", none),
		say("storage remove nas", "nas", "guest"),
		say("storage content none", "none", none),
		say("storage list --node n9", "no such cluster node 'n9'"),
		say("storage alloc small 150 64M", "small", "space"),
		say("storage alloc nas 150 big", "big"),
		say("storage free nas:199/vm-199-disk-0.raw", "vm-199-disk-0.raw", none),
		say("storage free nas:101/vm-101-disk-0.raw", "virtio0", "guest 101"),
		say("storage free nas:../../etc/passwd", "etc/passwd"),
		say("node status n9", "no such cluster node 'n9'"),
		say("task status UPID:n1:00000001:00000001:00000001:qmstart:101:root@pam:", "no such task"),
		say("task status nonsense", "nonsense"),
		say("cluster remove n9", "n9", none),
		say("cluster join nonsense", "already a member"),
		say("cluster create again", "already a member"),
		say("cluster key --valid 0s", "valid"),
	}
}

func TestAGuestThatDoesNotStartIsCreatedAllTheSame(t *testing.T) {
	r := open(t)
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 150") })
	r.Refused("n1", "vm create 150 --net0 virtio,bridge=vmbr77 --start", "was created", "does not start", "bridge 'vmbr77' does not exist on node n1")
	r.Guest(150).MustBe("stopped", "n1", 5*time.Second)
}

func TestALineBreakCannotBringAnotherLineIntoAConfiguration(t *testing.T) {
	r := open(t)
	r.Must("n1", "vm create 118 --name idle --memory 64")
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 118") })
	for key, value := range map[string]string{"name": "a\nlock: migrate", "tags": "a\r\nprotection: 1", "net0": "virtio,bridge=vmbr0\nonboot: 1"} {
		err := r.API("n1").SetGuestConfig(r.ctx(5*time.Second), "n1", 118, map[string]string{key: value}, nil, "")
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s with a line break: %v", key, err)
		}
	}
	for _, word := range []string{"lock", "protection", "onboot"} {
		if out := r.Must("n1", "vm config 118").out; strings.Contains(out, word) {
			t.Errorf("the configuration has %s:\n%s", word, out)
		}
	}
}
