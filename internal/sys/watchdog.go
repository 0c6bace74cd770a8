package sys

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrWatchdogHeld means that another process has the watchdog open; the kernel lets only one.
var ErrWatchdogHeld = errors.New("held by another process")

// Watchdog is an open watchdog device: a timer outside the operating system's
// control that resets the machine unless it is fed. Opening one arms and feeds it. It is not safe for concurrent use.
type Watchdog struct {
	file     *os.File
	path     string
	identity string
	timeout  time.Duration
	reset    bool
}

// watchdogInfo is struct watchdog_info of linux/watchdog.h.
type watchdogInfo struct {
	Options         uint32
	FirmwareVersion uint32
	Identity        [32]byte
}

// OpenWatchdog opens and arms the device at path and sets its timeout, which
// is counted in whole seconds. The device may choose another timeout: see Timeout. It refuses a
// device that an ordinary close would stop, because then the death of its holder would stop it too.
func OpenWatchdog(path string, timeout time.Duration) (*Watchdog, error) {
	seconds := int32(timeout / time.Second)
	if timeout <= 0 || time.Duration(seconds)*time.Second != timeout {
		return nil, fmt.Errorf("open watchdog %s: its timeout %v is not a whole number of seconds", path, timeout)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("open watchdog %s: %w: find it with `fuser -v %s`; if it is systemd, "+
			"set RuntimeWatchdogSec=off in /etc/systemd/system.conf", path, ErrWatchdogHeld, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open watchdog %s: %w", path, err)
	}
	w := &Watchdog{file: f, path: path}
	if err := w.setUp(seconds); err != nil {
		return nil, errors.Join(fmt.Errorf("set up watchdog %s: %w", path, err), w.Disarm())
	}
	return w, nil
}

func (w *Watchdog) setUp(seconds int32) error {
	var info watchdogInfo
	if err := w.ioctl(unix.WDIOC_GETSUPPORT, unsafe.Pointer(&info)); err != nil {
		return fmt.Errorf("WDIOC_GETSUPPORT: %w", err)
	}
	w.identity = string(bytes.TrimRight(info.Identity[:], "\x00"))
	if info.Options&unix.WDIOF_MAGICCLOSE == 0 {
		return fmt.Errorf("%q stops when its holder dies (no magic close), so it cannot guard anything: use another one", w.identity)
	}
	if err := w.ioctl(unix.WDIOC_SETTIMEOUT, unsafe.Pointer(&seconds)); err != nil {
		return fmt.Errorf("WDIOC_SETTIMEOUT to %d s: %w", seconds, err)
	}
	if err := w.ioctl(unix.WDIOC_GETTIMEOUT, unsafe.Pointer(&seconds)); err != nil {
		return fmt.Errorf("WDIOC_GETTIMEOUT: %w", err)
	}
	w.timeout = time.Duration(seconds) * time.Second
	var status int32 // not every driver knows it; then there is no evidence
	if err := w.ioctl(unix.WDIOC_GETBOOTSTATUS, unsafe.Pointer(&status)); err == nil {
		w.reset = status > 0 && status&unix.WDIOF_CARDRESET != 0
	}
	return nil
}

// CardReset says whether the device itself tells that it reset the machine before this boot. false is no evidence of
// anything: a software watchdog, and many others, forget.
func (w *Watchdog) CardReset() bool { return w.reset }

// Identity is the driver's name of the device.
func (w *Watchdog) Identity() string { return w.identity }

// Timeout is how long after the last Feed the machine is reset, as the device itself says.
func (w *Watchdog) Timeout() time.Duration { return w.timeout }

// File is the open device, to be inherited by a process that shall keep it open.
func (w *Watchdog) File() *os.File { return w.file }

// Feed starts the timeout anew.
func (w *Watchdog) Feed() error {
	var unused int32 // WDIOC_KEEPALIVE is encoded as if it returned an int
	if err := w.ioctl(unix.WDIOC_KEEPALIVE, unsafe.Pointer(&unused)); err != nil {
		return fmt.Errorf("feed watchdog %s: %w", w.path, err)
	}
	return nil
}

// Disarm stops the watchdog and closes it: the magic character 'V', then the close. It
// stays armed when another process has the same open file, or the kernel was built with no way out.
func (w *Watchdog) Disarm() error {
	_, err := w.file.WriteString("V")
	if err := errors.Join(err, w.file.Close()); err != nil {
		return fmt.Errorf("disarm watchdog %s: %w", w.path, err)
	}
	return nil
}

// Close lets go of the watchdog without stopping it: it goes on to count. Linux
// feeds it once more at the close of the last descriptor.
func (w *Watchdog) Close() error {
	if err := w.file.Close(); err != nil {
		return fmt.Errorf("close watchdog %s: %w", w.path, err)
	}
	return nil
}

func (w *Watchdog) ioctl(request uint, arg unsafe.Pointer) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	if uint64(request) > math.MaxUint32 {
		return unix.EINVAL
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
