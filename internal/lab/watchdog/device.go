// Package watchdog is a hardware watchdog for a node of the machine room: a
// device file with the ioctls of the Linux watchdog interface, whose expiry the
// room turns into a reset.
//
// It is no watchdog of the machine itself and resets nothing on its own.
//
// Invariant: once armed, the timer runs out unless the device is written to or
// kept alive; closing it does not stop it, except after the letter 'V' was
// written. Start reading with [Device]; fuse.go makes it a file.
package watchdog

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// Timeouts that can be set, in whole seconds; the default is softdog's.
const (
	DefaultTimeout = 60 * time.Second
	minTimeout     = time.Second
	maxTimeout     = 65535 * time.Second
)

// Device is the timer behind one device file. Its methods may be called from
// several goroutines.
type Device struct {
	expired func(timeout time.Duration)

	mu          sync.Mutex
	timeout     time.Duration
	timer       *time.Timer // nil while disarmed
	deadline    time.Time
	open        bool
	expectClose bool // 'V' was in the last write
	cardReset   bool // the last reset was ours
}

// New returns a disarmed Device. expired is called, on a goroutine of its own,
// when the timer runs out; the Device is disarmed then.
func New(expired func(timeout time.Duration)) *Device {
	return &Device{expired: expired, timeout: DefaultTimeout}
}

// PowerOn disarms the device and sets it back to its defaults. cardReset says
// that the watchdog was the reason for this boot, as GETBOOTSTATUS will tell.
func (d *Device) PowerOn(cardReset bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disarm()
	d.timeout, d.open, d.expectClose, d.cardReset = DefaultTimeout, false, false, cardReset
}

// Open takes the device and arms it; EBUSY while someone else has it.
func (d *Device) Open() syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open {
		return syscall.EBUSY
	}
	d.open, d.expectClose = true, false
	d.arm()
	return 0
}

// Write keeps the device alive; a 'V' in it allows the next Close to disarm.
func (d *Device) Write(data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(data) == 0 {
		return
	}
	d.expectClose = false
	for _, c := range data {
		d.expectClose = d.expectClose || c == 'V'
	}
	d.feed()
}

// Close gives the device back. Unless the last write had a 'V', the timer runs
// on, started anew once more, as Linux does.
func (d *Device) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expectClose {
		d.disarm()
	}
	d.feed()
	d.open, d.expectClose = false, false
}

// KeepAlive starts the timer anew if it is armed.
func (d *Device) KeepAlive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.feed()
}

// SetTimeout changes the timeout and keeps the device alive. EINVAL outside 1 s to 65535 s.
func (d *Device) SetTimeout(timeout time.Duration) syscall.Errno {
	if timeout < minTimeout || timeout > maxTimeout {
		return syscall.EINVAL
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timeout = timeout
	d.feed()
	return 0
}

// Timeout is the timeout set; left is what remains of it, 0 while disarmed.
func (d *Device) Timeout() (timeout, left time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer == nil {
		return d.timeout, 0
	}
	return d.timeout, max(time.Until(d.deadline), 0)
}

// CardReset says whether the last reset was the watchdog's.
func (d *Device) CardReset() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cardReset
}

// Enable arms or disarms the device while it is open.
func (d *Device) Enable(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on {
		d.arm()
	} else {
		d.disarm()
	}
}

// String says for a person what the device does: "off", "armed, 5s" or "armed, 5s, not open".
func (d *Device) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.timer == nil:
		return "off"
	case d.open:
		return fmt.Sprintf("armed, %v", d.timeout)
	}
	return fmt.Sprintf("armed, %v, not open", d.timeout)
}

// The rest needs mu.

func (d *Device) feed() {
	if d.timer != nil {
		d.arm()
	}
}

// arm makes a new timer each time: one that is just firing finds that it was replaced.
func (d *Device) arm() {
	d.disarm()
	d.deadline = time.Now().Add(d.timeout)
	timeout := d.timeout
	var t *time.Timer
	t = time.AfterFunc(timeout, func() {
		d.mu.Lock()
		current := d.timer == t
		if current {
			d.timer = nil
		}
		d.mu.Unlock()
		if current {
			d.expired(timeout)
		}
	})
	d.timer = t
}

func (d *Device) disarm() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer = nil
}
