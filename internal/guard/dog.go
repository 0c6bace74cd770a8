package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// dog is the watchdog with its holder: a second process that keeps the device
// open. Linux feeds a watchdog once more when its last descriptor is closed, so without the
// holder the death of the guard would be a feeding, and at the worst instant one too many.
type dog struct {
	cfg    Config
	log    *slog.Logger
	device watchdog
	// dismissed is when an earlier guard's holder was sent away; the kernel may take a moment to free the device.
	dismissed time.Time

	holder      *os.Process
	holderEnded chan struct{} // gets a value when the holder has ended
	holderError error
}

func (d *dog) init(cfg Config) {
	d.cfg, d.log = cfg, cfg.Log
	d.holderEnded = make(chan struct{}, 1)
}

func (d *dog) isOpen() bool { return d.device != nil }

// retry says whether a device that is held may yet become free by itself.
func (d *dog) retry() bool { return time.Since(d.dismissed) < 2*time.Second }

// feed feeds the watchdog, the first time by opening it. Opening is feeding, so it is
// not done before the machine said Feed.
func (d *dog) feed() error {
	if d.device == nil {
		return d.open()
	}
	return d.device.Feed()
}

func (d *dog) open() error {
	if dismiss(d.cfg.Socket) {
		d.dismissed = time.Now()
	}
	w, err := d.cfg.open(d.cfg.Watchdog, d.cfg.Params.Watchdog)
	if err != nil {
		return err
	}
	if w.Timeout() != d.cfg.Params.Watchdog {
		err := model.Invalidf("watchdog", "%s (%s) cannot be set to %v, it says %v: use another one", d.cfg.Watchdog, w.Identity(), d.cfg.Params.Watchdog, w.Timeout())
		return errors.Join(err, w.Disarm())
	}
	d.device = w
	if w.CardReset() {
		d.log.Warn("this boot follows a reset by the watchdog: the guard before it hung, died, or could not freeze a guest", "device", d.cfg.Watchdog)
	}
	d.log.Info("watchdog armed", "device", d.cfg.Watchdog, "identity", w.Identity(), "timeout", w.Timeout())
	d.hold()
	return nil
}

// hold starts the holder.
func (d *dog) hold() {
	d.holder, d.holderError = nil, nil
	if d.device == nil || len(d.cfg.Holder) == 0 {
		return
	}
	p, err := sys.StartHolder(d.cfg.Holder, d.device.File())
	if err != nil {
		d.holderError = err
		d.log.Error("the watchdog's holder cannot be started", "err", err)
		return
	}
	d.holder = p
	go func() { // ends with the holder, which outlives a guard that is killed: nobody waits for it
		_, _ = p.Wait()
		time.Sleep(100 * time.Millisecond) // the pace of restarts of a holder that ends at once
		d.holderEnded <- struct{}{}
	}()
}

// weak says what the watchdog lacks.
func (d *dog) weak() []string {
	switch {
	case d.cfg.Watchdog == NoWatchdog:
		return []string{"there is no watchdog: if the guard hangs or dies, protected guests run on past the deadline"}
	case d.holderError != nil:
		return []string{"the watchdog's holder cannot be started: " + d.holderError.Error()}
	case len(d.cfg.Holder) == 0:
		return []string{"the watchdog has no holder: if the guard is killed, that feeds the watchdog once more"}
	case d.grade() == GradeSoftware:
		return []string{"the watchdog is a timer of the kernel: it covers a guard that hangs, not a kernel that does; use a device"}
	}
	return nil
}

func (d *dog) grade() string {
	switch {
	case d.device == nil:
		return GradeNone
	case strings.Contains(strings.ToLower(d.device.Identity()), "software"):
		return GradeSoftware
	}
	return GradeHardware
}

// describe fills in what a status says of the device.
func (d *dog) describe(s *Status) {
	s.Grade = d.grade()
	if d.device != nil {
		s.Identity, s.TimeoutS, s.WatchdogReset = d.device.Identity(), d.device.Timeout().Seconds(), d.device.CardReset()
	}
}

// disarm stops the watchdog for good.
func (d *dog) disarm() error {
	if d.device == nil {
		return nil
	}
	if d.holder != nil {
		_ = d.holder.Signal(syscall.SIGKILL)
		<-d.holderEnded
		d.holder = nil
	}
	err := d.device.Disarm()
	d.device = nil
	if err == nil {
		d.log.Info("watchdog disarmed")
	}
	return err
}

// end lets go of a watchdog that was not disarmed: it resets the machine when its time is over.
func (d *dog) end() {
	if d.device != nil {
		_ = d.device.Close()
	}
}

// holderSocket is where the holder can be sent away.
func holderSocket(socket string) string { return socket + ".holder" }

// dismiss sends the holder of an earlier guard away and waits up to a second
// until it has closed the watchdog; that closing feeds. It is false if there was none.
func dismiss(socket string) bool {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(context.Background(), "unix", holderSocket(socket))
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, conn)
	return true
}

// Hold is the holder: it keeps its descriptor 3, the watchdog, open until a later
// guard with the same socket sends it away. No ordinary signal ends it.
func Hold(socket string) error {
	device := os.NewFile(3, "watchdog")
	if _, err := device.Stat(); err != nil {
		return errors.New("hold watchdog: it is not open as descriptor 3; only the guard starts a holder")
	}
	sys.IgnoreSignals()
	if err := sys.NeverOOM(); err != nil {
		fmt.Fprintln(os.Stderr, "hold watchdog:", err)
	}
	path := holderSocket(socket)
	_ = os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("hold watchdog: %w", err)
	}
	defer func() { _ = l.Close() }()
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("hold watchdog: %w", err)
	}
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return fmt.Errorf("hold watchdog: %w", err)
		}
		peer, err := sys.PeerOf(conn)
		if err == nil && peer.UID == 0 {
			err := device.Close()
			return errors.Join(err, conn.Close())
		}
		_ = conn.Close()
	}
}
