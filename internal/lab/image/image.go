// Package image builds the disk image of the probe guest: Debian's cloud kernel, an initramfs
// with the project's own guest program as init, and a boot loader, in a raw file of 128 MiB that is
// mostly a hole. Each guest then gets a copy with its own address ([Personalize]).
//
// It installs nothing on the machine: the kernel's package is downloaded and
// unpacked into a cache directory. What it drives is apt-get, dpkg-deb, mtools and syslinux.
//
// Invariant: an image's name is a hash of everything that went into it, and a file
// under its name is complete. Start reading with [Build].
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/lab/guest"
)

// ErrMissing means that a program or a package that building needs is not there.
var ErrMissing = errors.New("cannot build the probe guest's image")

// formatVersion is part of the name of every image and kernel; raise it when the builder changes what it writes.
const formatVersion = "4"

// DefaultCacheDir is where kernels and images are kept if Options do not say otherwise.
const DefaultCacheDir = "/var/cache/sauh/lab"

// Options of a build.
type Options struct {
	// Guest is the path of the static guest binary (CGO_ENABLED=0 go build ./cmd/sauh-guest).
	Guest string
	// CacheDir keeps kernels and images; "" is DefaultCacheDir. It is created.
	CacheDir string
	// KernelPackage is the Debian package to take; "" is what linux-image-cloud-amd64 stands for today.
	KernelPackage string
}

// Config is what Personalize writes.
type Config = guest.Config

// Build returns the path of a raw image made from o, building it if the cache
// does not have it. The file belongs to the cache: copy it (see [Copy]) before a guest writes to
// it. Safe to call from several processes at once. Errors: ErrMissing.
func Build(ctx context.Context, o Options) (string, error) {
	if o.CacheDir == "" {
		o.CacheDir = DefaultCacheDir
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	init, err := os.ReadFile(o.Guest)
	if err != nil {
		return "", fmt.Errorf("read guest binary: %w", err)
	}
	k, err := findKernel(ctx, metaPackage, o.KernelPackage, wantedModules())
	if err != nil {
		return "", err
	}
	path := filepath.Join(o.CacheDir, "probe-"+key(k, init)+".raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := checkPrograms(); err != nil {
		return "", err
	}
	if err := k.fetch(ctx, o.CacheDir); err != nil {
		return "", err
	}
	if err := build(ctx, k, init, path); err != nil {
		return "", fmt.Errorf("build image %s: %w", path, err)
	}
	return path, nil
}

// key names an image by its content.
func key(k *kernel, init []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%x\n", formatVersion, k.pkg, k.version, commandLine, sha256.Sum256(init))
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// build makes the image under a temporary name and moves it to path when it is complete.
func build(ctx context.Context, k *kernel, init []byte, path string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), "build-")
	if err != nil {
		return fmt.Errorf("make build directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	modules, err := k.modules()
	if err != nil {
		return err
	}
	initrd, err := initramfs(init, modules, nil)
	if err != nil {
		return err
	}
	vmlinuz, err := os.ReadFile(k.vmlinuz())
	if err != nil {
		return fmt.Errorf("read kernel: %w", err)
	}
	file := filepath.Join(dir, "disk.raw")
	if err := writeDisk(ctx, dir, file, vmlinuz, initrd); err != nil {
		return err
	}
	if err := os.Rename(file, path); err != nil {
		return fmt.Errorf("put image in place: %w", err)
	}
	return nil
}

// Personalize gives the raw image in file its address and host name. For a
// qcow2 disk, personalize a raw copy and convert that.
func Personalize(file string, c Config) error {
	block, err := guest.EncodeConfig(c)
	if err != nil {
		return fmt.Errorf("personalize %s: %w", file, err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("personalize: %w", err)
	}
	_, err = f.WriteAt(block, guest.ConfigOffset)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("personalize %s: %w", file, err)
	}
	return nil
}

// Copy makes a copy of the image src at dst that keeps its holes. It fails if dst exists.
func Copy(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	if err := errors.Join(copyData(out, in), out.Close()); err != nil {
		return fmt.Errorf("copy image %s to %s: %w", src, dst, err)
	}
	return nil
}

// copyData copies what is not a hole.
func copyData(out, in *os.File) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); off < st.Size(); {
		start, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		if off, err = unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("find hole: %w", err)
		}
		part := io.NewSectionReader(in, start, off-start)
		if _, err := io.Copy(io.NewOffsetWriter(out, start), part); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program and puts what it said into the error.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// checkPrograms names what is missing before anything is started.
func checkPrograms() error {
	for prog, pkg := range map[string]string{
		"apt-get": "apt", "dpkg-deb": "dpkg", "mformat": "mtools", "mcopy": "mtools", "syslinux": "syslinux",
	} {
		if _, err := exec.LookPath(prog); err != nil {
			return fmt.Errorf("%w: program %s is missing: install the package %s", ErrMissing, prog, pkg)
		}
	}
	return nil
}
