package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
)

// commandLine of the guest's kernel. The guest's own memory, not the host's, is
// what an attack on it would read, so mitigations only cost time here.
const commandLine = "console=ttyS0,115200 quiet loglevel=3 panic=1 mitigations=off no_timer_check rdinit=/init"

// loaderConfig makes the loader start the kernel at once.
const loaderConfig = "DEFAULT sauh\nPROMPT 0\nTIMEOUT 0\nLABEL sauh\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND " + commandLine + "\n"

// mbrCode is the boot code that starts the active partition, of the package syslinux-common.
const mbrCode = "/usr/lib/syslinux/mbr/mbr.bin"

const sector = 512

// writeDisk makes the raw image: partition table, boot partition with loader, kernel and initramfs, an empty ledger.
func writeDisk(ctx context.Context, dir, disk string, vmlinuz, initrd []byte) error {
	code, err := os.ReadFile(mbrCode)
	if err != nil {
		return fmt.Errorf("%w: boot code is missing: install the package syslinux-common: %w", ErrMissing, err)
	}
	if err := writeTable(disk, code); err != nil {
		return err
	}
	at := fmt.Sprintf("%s@@%d", disk, guest.BootOffset)
	if _, err := run(ctx, dir, "mformat", "-i", at, "-T", strconv.Itoa(guest.BootSize/sector), "-h", "64", "-s", "32",
		"-c", "64", "-H", strconv.Itoa(guest.BootOffset/sector), "-N", "5a554853", "::"); err != nil {
		return fmt.Errorf("format boot partition: %w", err)
	}
	if _, err := run(ctx, dir, "syslinux", "--install", "--offset", strconv.Itoa(guest.BootOffset), disk); err != nil {
		return fmt.Errorf("install loader: %w", err)
	}
	files := []file{{"syslinux.cfg", []byte(loaderConfig)}, {"vmlinuz", vmlinuz}, {"initrd", initrd}}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, f.data, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(1<<30, 0)); err != nil {
			return fmt.Errorf("date %s: %w", f.name, err)
		}
		if _, err := run(ctx, dir, "mcopy", "-m", "-i", at, path, "::"+f.name); err != nil {
			return fmt.Errorf("copy %s into boot partition: %w", f.name, err)
		}
	}
	return nil
}

// writeTable makes a sparse file with a partition table: FAT, active; and the ledger, without a file system.
func writeTable(disk string, code []byte) error {
	mbr := make([]byte, sector)
	copy(mbr[:440], code)
	entry(mbr[446:], 0x80, 0x0e, guest.BootOffset, guest.BootSize)
	entry(mbr[462:], 0, 0xda, guest.LedgerOffset, guest.LedgerSize)
	mbr[510], mbr[511] = 0x55, 0xaa
	f, err := os.Create(disk)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	_, err = f.Write(mbr)
	if err := errors.Join(err, f.Truncate(guest.DiskSize), f.Close()); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	return nil
}

// entry fills one line of the partition table; the addresses in cylinders and heads say "use the others".
func entry(b []byte, flag, kind byte, off, size int) {
	copy(b, []byte{flag, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(b[8:], uint32(off/sector))
	binary.LittleEndian.PutUint32(b[12:], uint32(size/sector))
}
