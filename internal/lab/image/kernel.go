package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// metaPackage depends on the newest kernel for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

// wantedModules are what the guest loads, in this order. One that a kernel has built in is left out.
func wantedModules() []string {
	return []string{
		"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
		"failover", "net_failover", "virtio_net", "virtio_blk",
		"evdev", "button", // the ACPI power button
		"virtio_console",         // the guest agent's port
		"pvpanic", "pvpanic_pci", // says that the kernel panicked
	}
}

// kernel is one Debian kernel package.
type kernel struct {
	pkg, version string
	wanted       []string // modules, in the order to load them in
	dir          string   // where fetch unpacked it
}

// findKernel asks apt which package and version to take; it does not need the network. pkg "" is what meta
// stands for today.
func findKernel(ctx context.Context, meta, pkg string, wanted []string) (*kernel, error) {
	if pkg == "" {
		out, err := run(ctx, "", "apt-cache", "depends", meta)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMissing, err)
		}
		if pkg = field(out, "Depends:"); pkg == "" {
			return nil, fmt.Errorf("%w: apt does not know %s: run apt-get update", ErrMissing, meta)
		}
	}
	out, err := run(ctx, "", "apt-cache", "policy", pkg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	version := field(out, "Candidate:")
	if version == "" || version == "(none)" {
		return nil, fmt.Errorf("%w: apt has no version of %s: run apt-get update", ErrMissing, pkg)
	}
	return &kernel{pkg: pkg, version: version, wanted: wanted}, nil
}

// field returns the word after name in the output of apt-cache.
func field(out, name string) string {
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func (k *kernel) vmlinuz() string { return filepath.Join(k.dir, "vmlinuz") }

// fetch downloads the package and keeps kernel and modules of it under cache, unless they are there.
func (k *kernel) fetch(ctx context.Context, cache string) (err error) {
	k.dir = filepath.Join(cache, "kernel-"+formatVersion+"-"+k.pkg+"_"+strings.ReplaceAll(k.version, ":", "."))
	if !slices.Equal(k.wanted, wantedModules()) {
		k.dir += "-" + strings.Join(k.wanted, "-")
	}
	if _, err := os.Stat(k.dir); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(cache, "kernel-tmp-")
	if err != nil {
		return fmt.Errorf("make directory for kernel: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.Chmod(tmp, 0o755); err != nil { // apt's own user reads it
		return fmt.Errorf("open directory for kernel: %w", err)
	}
	if _, err := run(ctx, tmp, "apt-get", "-q", "download", k.pkg+"="+k.version); err != nil {
		return fmt.Errorf("%w: download kernel: %w", ErrMissing, err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download kernel %s: %d packages arrived: %w", k.pkg, len(debs), errors.Join(ErrMissing, err))
	}
	if _, err := run(ctx, tmp, "dpkg-deb", "-x", debs[0], "root"); err != nil {
		return fmt.Errorf("unpack kernel: %w", err)
	}
	return k.keep(filepath.Join(tmp, "root"), filepath.Join(tmp, "keep"))
}

// keep copies what a guest needs from the unpacked package and puts it in place.
func (k *kernel) keep(root, keep string) error {
	if err := os.Mkdir(keep, 0o755); err != nil {
		return fmt.Errorf("keep kernel: %w", err)
	}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("package %s holds %d kernels, one was expected", k.pkg, len(images))
	}
	if err := os.Rename(images[0], filepath.Join(keep, "vmlinuz")); err != nil {
		return fmt.Errorf("keep kernel: %w", err)
	}
	found, err := findModules(filepath.Join(root, "lib", "modules"))
	if err != nil {
		return err
	}
	for i, name := range k.wanted {
		file, ok := found[name]
		if !ok {
			continue
		}
		if err := os.Rename(file, filepath.Join(keep, fmt.Sprintf("%02d-%s.ko", i, name))); err != nil {
			return fmt.Errorf("keep module: %w", err)
		}
	}
	if err := os.Rename(keep, k.dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("put kernel in place: %w", err)
	}
	return nil
}

// findModules maps the names of the modules under dir to their files. A module
// that is compressed is an error: the guest loads files as they are.
func findModules(dir string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			found[strings.ReplaceAll(name, "-", "_")] = path
		}
		if strings.Contains(d.Name(), ".ko.") {
			return fmt.Errorf("module %s is compressed, which the guest cannot load: choose another kernel package", d.Name())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	return found, nil
}

// modules reads the modules that fetch kept.
func (k *kernel) modules() ([]file, error) {
	paths, err := filepath.Glob(filepath.Join(k.dir, "*.ko"))
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	var out []file
	for _, path := range paths { // Glob sorts
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read module: %w", err)
		}
		out = append(out, file{name: filepath.Base(path), data: data})
	}
	return out, nil
}
