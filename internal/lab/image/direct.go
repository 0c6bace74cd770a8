package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// StandardKernel is the package that depends on Debian's kernel for real machines; it has the drivers that the cloud kernel lacks.
const StandardKernel = "linux-image-amd64"

// DirectOptions say what a machine boots that QEMU loads itself, without a disk.
type DirectOptions struct {
	// Kernel is a package that depends on the newest kernel, StandardKernel for example.
	Kernel string
	// Modules are loaded by guest.LoadModules in this order. One that the kernel has built in is left out.
	Modules []string
	// Init is the path of a static program, and Programs those of others by their names in the root directory.
	Init     string
	Programs map[string]string
	// CacheDir keeps kernels; "" is DefaultCacheDir.
	CacheDir string
}

// Direct builds an initramfs in dir and returns what QEMU's -kernel and -initrd want. Errors: ErrMissing.
func Direct(ctx context.Context, dir string, o DirectOptions) (vmlinuz, initrd string, err error) {
	if o.CacheDir == "" {
		o.CacheDir = DefaultCacheDir
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return "", "", fmt.Errorf("make cache directory: %w", err)
	}
	k, err := findKernel(ctx, o.Kernel, "", o.Modules)
	if err != nil {
		return "", "", err
	}
	if err := k.fetch(ctx, o.CacheDir); err != nil {
		return "", "", err
	}
	init, err := os.ReadFile(o.Init)
	if err != nil {
		return "", "", fmt.Errorf("read init: %w", err)
	}
	modules, err := k.modules()
	if err != nil {
		return "", "", err
	}
	var programs []file
	for name, path := range o.Programs {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", "", fmt.Errorf("read program %s: %w", name, err)
		}
		programs = append(programs, file{name, data})
	}
	slices.SortFunc(programs, func(a, b file) int { return strings.Compare(a.name, b.name) })
	packed, err := initramfs(init, modules, programs)
	if err != nil {
		return "", "", err
	}
	initrd = filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, packed, 0o644); err != nil {
		return "", "", fmt.Errorf("write initramfs: %w", err)
	}
	return k.vmlinuz(), initrd, nil
}
