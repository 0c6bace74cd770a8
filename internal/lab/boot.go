package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/lab/watchdog"
	"sauh.dev/sauh/internal/sys"
)

// runInit is pid 1 of a node. It says on ready when the node is set up, runs the
// units and returns only when it cannot go on; the node ends with it.
func runInit(specFile, ready *os.File) error {
	var spec bootSpec
	if err := json.NewDecoder(specFile).Decode(&spec); err != nil {
		return fmt.Errorf("read what to boot: %w", err)
	}
	_ = specFile.Close()
	if err := unix.Sethostname([]byte(spec.Node)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := setUpMounts(spec); err != nil {
		return err
	}
	if err := setUpNetwork(spec); err != nil {
		return err
	}
	if err := setUpCgroups(); err != nil {
		return err
	}
	reaper := sys.NewReaper()
	units, err := startUnits(spec.Units, reaper)
	if err != nil {
		return err
	}
	if _, err := ready.WriteString("ok"); err != nil {
		return err
	}
	_ = ready.Close()
	return units.run(context.Background())
}

// setUpNetwork does what an installer would have configured: eth0 under the
// bridge vmbr0 with the management address, eth1 with the cluster's.
func setUpNetwork(spec bootSpec) error {
	err := setSysctls([][2]string{
		// Addresses are usable at once: nobody else in the room could have them.
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv4/ip_forward", "0"},
		{"net/mptcp/enabled", "1"},
		{"net/bridge/bridge-nf-call-iptables", "0"},
		{"net/bridge/bridge-nf-call-ip6tables", "0"},
		{"net/bridge/bridge-nf-call-arptables", "0"},
	})
	if err != nil {
		return err
	}
	if err := setUpLoopback(); err != nil {
		return err
	}
	if err := addBridge("vmbr0", hardwareAddress(Mgmt, spec.Index)); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName("vmbr0")
	if err != nil {
		return fmt.Errorf("find vmbr0: %w", err)
	}
	for _, card := range []string{"eth0", "eth1"} {
		link, err := netlink.LinkByName(card)
		if err == nil && card == "eth0" {
			err = netlink.LinkSetMaster(link, bridge)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return fmt.Errorf("set up %s: %w", card, err)
		}
	}
	if err := addAddress("vmbr0", MgmtAddress(spec.Index)); err != nil {
		return err
	}
	return addAddress("eth1", ClusterAddress(spec.Index))
}

// setUpCgroups leaves the node's root cgroup, so that it may hand controllers down.
func setUpCgroups() error {
	for _, name := range []string{initScope, systemSlice} {
		if err := os.Mkdir(filepath.Join(roomCgroups, name), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if err := sys.JoinCgroup(filepath.Join(roomCgroups, initScope)); err != nil {
		return fmt.Errorf("enter %s: %w", initScope, err)
	}
	return sys.DelegateControllers(roomCgroups)
}

// setUpMounts builds the node's file systems below the room's private
// directory for it and makes them the root.
func setUpMounts(spec bootSpec) error {
	if err := sys.PrivateMounts(); err != nil {
		return err
	}
	run := filepath.Join(runPath(spec.Dir), spec.Node)
	root := filepath.Join(run, "root")
	for i := range spec.Layers {
		for _, d := range []string{"upper", "work"} {
			if err := os.MkdirAll(layerPath(run, i, d), 0o755); err != nil {
				return err
			}
		}
	}
	if err := sys.MountAll(nodeMounts(spec)); err != nil {
		return err
	}
	if err := coverTrigger(run, root); err != nil {
		return err
	}
	if err := makeDevices(filepath.Join(root, "dev")); err != nil {
		return err
	}
	if err := writeNames(root, spec); err != nil {
		return err
	}
	return sys.PivotRoot(root)
}

// coverTrigger puts the room's own file over /proc/sysrq-trigger, through which
// a node would reset the host. Not every kernel has it.
func coverTrigger(run, root string) error {
	target := filepath.Join(root, "proc/sysrq-trigger")
	if !exists(target) {
		return nil
	}
	return sys.Mount{Source: filepath.Join(run, "dev", watchdog.TriggerFile), Target: target, Flags: unix.MS_BIND}.Do()
}

func layerPath(run string, i int, what string) string {
	return filepath.Join(run, "layers", fmt.Sprint(i), what)
}

// nodeMounts is everything that is mounted in a node, in order. Its root is the
// host's, seen through an overlay whose changes the room keeps in memory; what
// must last (state, logs, configuration) is bound from the room's directory.
func nodeMounts(spec bootSpec) []sys.Mount {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	run := filepath.Join(runPath(spec.Dir), spec.Node)
	state := filepath.Join(nodesPath(spec.Dir), spec.Node)
	in := func(path string) string { return filepath.Join(run, "root", path) }
	bind := func(source, target string) sys.Mount {
		return sys.Mount{Source: source, Target: in(target), Flags: unix.MS_BIND}
	}
	var mounts []sys.Mount
	for i, layer := range spec.Layers {
		mounts = append(mounts, sys.Mount{
			Source: "overlay", Target: in(layer), Type: "overlay",
			Data: fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off", layer, layerPath(run, i, "upper"), layerPath(run, i, "work")),
		})
	}
	mounts = append(mounts,
		sys.Mount{Source: "proc", Target: in("proc"), Type: "proc", Flags: quiet},
		sys.Mount{Source: "sysfs", Target: in("sys"), Type: "sysfs", Flags: quiet},
		sys.Mount{Source: "cgroup2", Target: in(roomCgroups), Type: "cgroup2", Flags: quiet},
		sys.Mount{Source: "dev", Target: in("dev"), Type: "tmpfs", Flags: unix.MS_NOSUID, Data: "mode=755"},
		sys.Mount{Source: "devpts", Target: in("dev/pts"), Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		sys.Mount{Source: "shm", Target: in("dev/shm"), Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV},
		sys.Mount{Source: "run", Target: in("run"), Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=755"},
		sys.Mount{Source: "tmp", Target: in("tmp"), Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
		bind(filepath.Join(state, "lib"), "var/lib/sauh"),
		bind(filepath.Join(state, "log"), "var/log/sauh"),
		bind(filepath.Join(state, "etc"), "etc/sauh"),
		bind(nasPath(spec.Dir), "srv/nas"),
		bind(binaryPath(spec.Dir), "usr/local/bin/sauh"),
		bind(filepath.Join(run, "boot_id"), "proc/sys/kernel/random/boot_id"),
		bind(filepath.Join(run, "dev", watchdog.File), "dev/watchdog"),
		bind(filepath.Join(run, "dev", watchdog.File), "dev/watchdog0"),
	)
	if exists(systemUUID) {
		mounts = append(mounts, bind(filepath.Join(run, "product_uuid"), systemUUID))
	}
	if !private(spec.Dir) {
		// The other nodes' state is none of this node's business.
		mounts = append(mounts, sys.Mount{Source: "none", Target: in(spec.Dir), Type: "tmpfs", Flags: quiet | unix.MS_RDONLY})
	}
	return mounts
}

// hostLayers are the mount points of the host whose files nodes see: its root
// and every other file system on a disk or network, from /proc/self/mountinfo.
func hostLayers(mountinfo string) []string {
	disks := " ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs overlay nfs nfs4 virtiofs 9p "
	layers := []string{"/"}
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(g) == 0 || f[4] == "/" || strings.ContainsAny(f[4], `\,:`) {
			continue
		}
		if strings.Contains(disks, " "+g[0]+" ") && !private(f[4]) {
			layers = append(layers, f[4])
		}
	}
	return layers
}

// private says whether a node has its own file system at or above path.
func private(path string) bool {
	for _, p := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// makeDevices fills a node's /dev. Of the host's devices it gets those that QEMU and FUSE need.
func makeDevices(dir string) error {
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		if err := sys.Device(filepath.Join(dir, d.name), d.major, d.minor); err != nil {
			return err
		}
	}
	for _, name := range []string{"kvm", "net/tun", "fuse", "vhost-net", "vhost-vsock"} {
		if err := sys.CopyDevice(filepath.Join(dir, name), filepath.Join("/dev", name)); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// writeNames gives the node its own name and the names of the others.
func writeNames(root string, spec bootSpec) error {
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte(spec.Node+"\n"), 0o644); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for i := range spec.Nodes {
		fmt.Fprintf(&b, "%s %s\n", MgmtAddress(i+1), NodeName(i+1))
	}
	fmt.Fprintf(&b, "%s room\n", net.ParseIP(RoomAddress))
	return os.WriteFile(filepath.Join(root, "etc/hosts"), []byte(b.String()), 0o644)
}
