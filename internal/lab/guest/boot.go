package guest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/lab/guest/ledger"
)

const (
	disk       = "/dev/vda"
	console    = "/dev/ttyS0"
	netIf      = "eth0"
	deviceWait = 10 * time.Second
	// readBuffer is how much of the ledger is read at once.
	readBuffer = 1 << 20
)

// ModuleDir is where the initramfs keeps kernel modules, named so that their
// alphabetical order is the order to load them in.
const ModuleDir = "/modules"

// Run is the whole life of the guest as the init of its kernel: file systems,
// modules, configuration, address, services. It returns when a power-off was asked for (nil)
// or nothing sensible can go on; the caller then calls [PowerOff] or [Panic].
func Run(ctx context.Context) error {
	booted := time.Now()
	if err := MountAll(); err != nil {
		return err
	}
	if err := LoadModules(ModuleDir); err != nil {
		return err
	}
	dev, err := openDisk(ctx)
	if err != nil {
		return err
	}
	defer dev.Close()
	config, err := readConfig(dev)
	if err != nil {
		return err
	}
	if err := configureNetwork(ctx, config); err != nil {
		return err
	}
	boot, err := bootID(booted)
	if err != nil {
		return err
	}
	return runServices(ctx, config, boot, booted, dev)
}

// runServices starts everything and waits for the end of it.
func runServices(ctx context.Context, c Config, boot ledger.BootID, booted time.Time, dev *os.File) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	buffers, err := alignedMemory(2 * readBuffer)
	if err != nil {
		return err
	}
	region := &section{f: dev, off: LedgerOffset}
	service := NewLedgerService(region, LedgerSize, boot, buffers[:readBuffer])
	g := New(c, boot, booted, service, freeMiB()*3/4, kernelFaults())
	listeners, err := Listen(ctx, "")
	if err != nil {
		return err
	}
	tty, err := os.OpenFile(console, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open serial port: %w", err)
	}
	defer tty.Close()

	say := func(err error) {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(tty, "sauh-guest: %v\n", err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { say(g.Serve(ctx, listeners)) })
	buttons, err := openButtons()
	say(err) // a guest without a button serves all the same
	for _, f := range buttons {
		wg.Go(func() { say(watchButton(ctx, f, stop)) })
	}
	wg.Go(func() { say(g.serveAgent(ctx, stop)) })
	wg.Go(func() { say(service.Open(time.Now, buffers[readBuffer:])) })
	fmt.Fprintf(tty, "%s %s %s\n", ReadyPrefix, c.Hostname, c.IP.Addr())
	if !c.Quiet {
		wg.Go(func() { say(g.Console(ctx, tty, stop)) })
	}
	<-ctx.Done()
	_ = tty.SetReadDeadline(time.Unix(1, 0)) // wakes the prompt
	wg.Wait()
	fmt.Fprintln(tty, "sauh-guest: power-off")
	return nil
}

// PowerOff writes everything out and switches the machine off. It does not return.
func PowerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// Panic says why on the kernel's console and ends init, at which the kernel
// panics and, started with panic=1, boots again a second later.
func Panic(err error) {
	fmt.Fprintf(os.Stderr, "sauh-guest: %v\n", err)
	os.Exit(1)
}

// MountAll mounts /proc, /sys and /dev; what is mounted already stays.
func MountAll() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// LoadModules loads every module in dir in alphabetical order.
func LoadModules(dir string) error {
	files, err := filepath.Glob(dir + "/*.ko")
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	slices.Sort(files)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("open module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", file, err)
		}
	}
	return nil
}

// waitFor polls until ready says so; drivers find their devices in the background.
func waitFor(ctx context.Context, what string, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// openDisk opens the guest's disk without the kernel's cache: a write returns
// when it is on stable storage, and a sector is never written because a neighbour of it was.
func openDisk(ctx context.Context) (*os.File, error) {
	var f *os.File
	err := waitFor(ctx, disk, func() bool {
		var err error
		f, err = os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
		return err == nil
	})
	return f, err
}

func readConfig(dev io.ReaderAt) (Config, error) {
	buf, err := alignedMemory(ConfigSize)
	if err != nil {
		return Config{}, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	if _, err := dev.ReadAt(buf, ConfigOffset); err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return DecodeConfig(buf)
}

// alignedMemory returns page-aligned memory, which O_DIRECT wants.
func alignedMemory(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	return b, nil
}

// bootID mixes the kernel's boot id with the time, because a kernel without a
// source of randomness might make the same id at two boots.
func bootID(now time.Time) (ledger.BootID, error) {
	var id ledger.BootID
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("read boot id: %w", err)
	}
	sum := sha256.Sum256(append(text, strconv.FormatInt(now.UnixNano(), 16)...))
	copy(id[:], sum[:])
	return id, nil
}

// freeMiB is the memory that is free now, by /proc/meminfo.
func freeMiB() int {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.Atoi(kib)
	if err != nil {
		return 0
	}
	return n >> 10
}

// section is the part of a disk that begins at off.
type section struct {
	f   *os.File
	off int64
}

func (s *section) ReadAt(p []byte, off int64) (int, error)  { return s.f.ReadAt(p, s.off+off) }
func (s *section) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, s.off+off) }
