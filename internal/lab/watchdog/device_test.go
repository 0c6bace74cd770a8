package watchdog

import (
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs f with a device that counts how often it expired.
func bubble(t *testing.T, f func(t *testing.T, d *Device, expired *atomic.Int32)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var expired atomic.Int32
		d := New(func(time.Duration) { expired.Add(1) })
		defer d.PowerOn(false)
		f(t, d, &expired)
	})
}

func open(t *testing.T, d *Device, timeout time.Duration) {
	t.Helper()
	if errno := d.Open(); errno != 0 {
		t.Fatal(errno)
	}
	if errno := d.SetTimeout(timeout); errno != 0 {
		t.Fatal(errno)
	}
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestItExpiresOnceWhenItIsNotFed(t *testing.T) {
	bubble(t, func(t *testing.T, d *Device, expired *atomic.Int32) {
		pass(time.Hour)
		if expired.Load() != 0 {
			t.Fatal("expired before it was opened")
		}
		open(t, d, 5*time.Second)
		pass(5*time.Second - 1)
		if expired.Load() != 0 {
			t.Fatal("expired too early")
		}
		pass(1)
		if expired.Load() != 1 {
			t.Fatal("did not expire at the timeout")
		}
		pass(time.Hour)
		if expired.Load() != 1 {
			t.Error("expired twice")
		}
	})
}

func TestWritesAndKeepAlivesFeedIt(t *testing.T) {
	bubble(t, func(t *testing.T, d *Device, expired *atomic.Int32) {
		open(t, d, 5*time.Second)
		for range 10 {
			pass(4 * time.Second)
			d.Write([]byte{0})
			pass(4 * time.Second)
			d.KeepAlive()
		}
		if expired.Load() != 0 {
			t.Error("expired although it was fed")
		}
		d.Write(nil)
		pass(5 * time.Second)
		if expired.Load() != 1 {
			t.Error("an empty write fed it")
		}
	})
}

func TestOnlyAMagicCloseDisarmsIt(t *testing.T) {
	bubble(t, func(t *testing.T, d *Device, expired *atomic.Int32) {
		open(t, d, 5*time.Second)
		d.Write([]byte("xVx"))
		d.Close()
		pass(time.Hour)
		if expired.Load() != 0 {
			t.Error("a magic close did not disarm it")
		}
		open(t, d, 5*time.Second)
		d.Write([]byte("V"))
		d.Write([]byte("x"))
		pass(4 * time.Second)
		d.Close()
		pass(5*time.Second - 1)
		if expired.Load() != 0 {
			t.Error("the close did not feed it once more")
		}
		pass(1)
		if expired.Load() != 1 {
			t.Error("a close without V as the last write disarmed it")
		}
	})
}

func TestItHasOneHolder(t *testing.T) {
	bubble(t, func(t *testing.T, d *Device, _ *atomic.Int32) {
		open(t, d, time.Minute)
		if errno := d.Open(); errno != syscall.EBUSY {
			t.Errorf("second open: %v", errno)
		}
		d.Close()
		if errno := d.Open(); errno != 0 {
			t.Errorf("open after close: %v", errno)
		}
	})
}

func TestTheTimeoutIsBoundedAndTellsWhatIsLeft(t *testing.T) {
	bubble(t, func(t *testing.T, d *Device, _ *atomic.Int32) {
		open(t, d, 10*time.Second)
		for _, bad := range []time.Duration{0, -time.Second, 65536 * time.Second} {
			if errno := d.SetTimeout(bad); errno != syscall.EINVAL {
				t.Errorf("timeout %v: %v", bad, errno)
			}
		}
		pass(3 * time.Second)
		if timeout, left := d.Timeout(); timeout != 10*time.Second || left != 7*time.Second {
			t.Errorf("timeout %v, left %v", timeout, left)
		}
		if got := d.String(); got != "armed, 10s" {
			t.Error(got)
		}
		d.Enable(false)
		if _, left := d.Timeout(); left != 0 || d.String() != "off" {
			t.Errorf("disabled, left %v", left)
		}
		d.Enable(true)
		if _, left := d.Timeout(); left != 10*time.Second {
			t.Errorf("enabled again, left %v", left)
		}
	})
}

func TestPowerOnSetsItBack(t *testing.T) {
	bubble(t, func(t *testing.T, d *Device, expired *atomic.Int32) {
		open(t, d, 2*time.Second)
		d.PowerOn(true)
		pass(time.Hour)
		if timeout, _ := d.Timeout(); expired.Load() != 0 || timeout != DefaultTimeout || !d.CardReset() {
			t.Errorf("after power on: expired %d, timeout %v, card reset %v", expired.Load(), timeout, d.CardReset())
		}
		if errno := d.Open(); errno != 0 {
			t.Errorf("the dead machine still holds it: %v", errno)
		}
	})
}
