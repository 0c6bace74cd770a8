package watchdog

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/sys"
)

// Identity is what GETSUPPORT names the device.
const Identity = "Sauh lab watchdog"

// Names of the files that Mount provides.
const (
	File        = "watchdog"
	TriggerFile = "sysrq-trigger"
)

// Mount serves the device as the file dir/watchdog, and beside it
// dir/sysrq-trigger, a stand-in for /proc/sysrq-trigger that hands each letter
// written to trigger. The file system ends with the process.
func Mount(dir string, d *Device, trigger func(letter byte)) (*fuse.Server, error) {
	// Opened and mounted here, not by the library, which would let children inherit the file.
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	m := sys.Mount{
		Source: "sauh-lab", Target: dir, Type: "fuse", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		Data: fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", dev, os.Geteuid(), os.Getegid()),
	}
	if err := m.Do(); err != nil {
		_ = unix.Close(dev)
		return nil, err
	}
	root := &dirNode{device: d, trigger: trigger}
	return fs.Mount(fmt.Sprintf("/dev/fd/%d", dev), root, &fs.Options{
		MountOptions: fuse.MountOptions{FsName: "sauh-lab", Name: "watchdog"},
	})
}

type dirNode struct {
	fs.Inode
	device  *Device
	trigger func(byte)
}

var _ fs.NodeOnAdder = (*dirNode)(nil)

func (n *dirNode) OnAdd(ctx context.Context) {
	attr := fs.StableAttr{Mode: fuse.S_IFREG}
	n.AddChild(File, n.NewPersistentInode(ctx, &deviceNode{device: n.device}, attr), false)
	n.AddChild(TriggerFile, n.NewPersistentInode(ctx, &triggerNode{trigger: n.trigger}, attr), false)
}

// openFlags: no page cache and no file position, as befits a device.
const openFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_STREAM

type deviceNode struct {
	fs.Inode
	device *Device
}

var (
	_ fs.NodeOpener    = (*deviceNode)(nil)
	_ fs.NodeGetattrer = (*deviceNode)(nil)
	_ fs.NodeSetattrer = (*deviceNode)(nil)
)

func (n *deviceNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.device.Open(); errno != 0 {
		return nil, 0, errno
	}
	return &deviceFile{device: n.device}, openFlags, 0
}

func (n *deviceNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	return 0
}

// Setattr lets the truncation pass that comes with O_TRUNC.
func (n *deviceNode) Setattr(context.Context, fs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return 0
}

type deviceFile struct{ device *Device }

var (
	_ fs.FileWriter   = (*deviceFile)(nil)
	_ fs.FileReleaser = (*deviceFile)(nil)
	_ fs.FileIoctler  = (*deviceFile)(nil)
)

func (f *deviceFile) Write(_ context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	f.device.Write(data)
	return uint32(len(data)), 0
}

func (f *deviceFile) Release(context.Context) syscall.Errno {
	f.device.Close()
	return 0
}

// supported are the options that GETSUPPORT reports.
const supported = unix.WDIOF_SETTIMEOUT | unix.WDIOF_MAGICCLOSE | unix.WDIOF_KEEPALIVEPING | unix.WDIOF_CARDRESET

// Ioctl answers as drivers/watchdog/watchdog_dev.c does. input and output have
// the sizes that the command itself encodes.
func (f *deviceFile) Ioctl(ctx context.Context, cmd uint32, arg uint64, input, output []byte) (int32, syscall.Errno) {
	switch uint(cmd) {
	case unix.WDIOC_GETSUPPORT:
		binary.NativeEndian.PutUint32(output, supported)
		copy(output[8:], Identity)
		return 0, 0
	case unix.WDIOC_GETSTATUS:
		return 0, putInt(output, 0)
	case unix.WDIOC_GETBOOTSTATUS:
		status := 0
		if f.device.CardReset() {
			status = unix.WDIOF_CARDRESET
		}
		return 0, putInt(output, status)
	case unix.WDIOC_SETOPTIONS:
		return 0, f.setOptions(ctx, arg, output)
	case unix.WDIOC_KEEPALIVE:
		f.device.KeepAlive()
		return 0, 0
	case unix.WDIOC_SETTIMEOUT:
		seconds := int32(binary.NativeEndian.Uint32(input))
		if errno := f.device.SetTimeout(time.Duration(seconds) * time.Second); errno != 0 {
			return 0, errno
		}
		return 0, putInt(output, int(seconds))
	case unix.WDIOC_GETTIMEOUT:
		timeout, _ := f.device.Timeout()
		return 0, putInt(output, int(timeout/time.Second))
	case unix.WDIOC_GETTIMELEFT:
		_, left := f.device.Timeout()
		return 0, putInt(output, int(left/time.Second))
	}
	return 0, syscall.ENOTTY
}

// setOptions reads its argument from the caller's memory: SETOPTIONS is encoded
// as a command that only returns something, so FUSE does not bring the argument along.
func (f *deviceFile) setOptions(ctx context.Context, arg uint64, output []byte) syscall.Errno {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return syscall.EIO
	}
	var buf [4]byte
	if err := sys.ReadProcessMemory(int(caller.Pid), uintptr(arg), buf[:]); err != nil {
		return syscall.EFAULT
	}
	copy(output, buf[:])
	options := binary.NativeEndian.Uint32(buf[:])
	switch {
	case options&unix.WDIOS_DISABLECARD != 0:
		f.device.Enable(false)
	case options&unix.WDIOS_ENABLECARD != 0:
		f.device.Enable(true)
	default:
		return syscall.EINVAL
	}
	return 0
}

func putInt(output []byte, v int) syscall.Errno {
	binary.NativeEndian.PutUint32(output, uint32(v))
	return 0
}

type triggerNode struct {
	fs.Inode
	trigger func(byte)
}

var (
	_ fs.NodeOpener    = (*triggerNode)(nil)
	_ fs.NodeGetattrer = (*triggerNode)(nil)
	_ fs.NodeSetattrer = (*triggerNode)(nil)
	_ fs.NodeWriter    = (*triggerNode)(nil)
)

func (n *triggerNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, openFlags, 0
}

func (n *triggerNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o200
	return 0
}

func (n *triggerNode) Setattr(context.Context, fs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return 0
}

func (n *triggerNode) Write(_ context.Context, _ fs.FileHandle, data []byte, _ int64) (uint32, syscall.Errno) {
	if len(data) > 0 {
		n.trigger(data[0]) // the kernel too looks at the first letter only
	}
	return uint32(len(data)), 0
}
