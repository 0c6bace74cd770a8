package dir

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
	"sauh.dev/sauh/internal/storage"
)

const (
	// partPrefix starts the name of an image that is being made.
	partPrefix = ".sauh-part-"
	// partAge is when such a file is the rest of a node that died: making one writes all the time.
	partAge = time.Hour
	// sizeUnit is what the sizes of empty volumes are rounded up to: a multiple of whatever O_DIRECT and the guest want.
	sizeUnit = units.MiB
	// importUnit is what the size of a copied image is rounded up to: QEMU refuses a raw image that is no multiple of what
	// O_DIRECT wants, which is a page at most.
	importUnit = 4 * units.KiB
	// maxSize is a GiB below what the file offsets of Linux can count, so that rounding cannot overflow.
	maxSize = math.MaxInt64 - units.GiB
	// maxDisks bounds the search for a free number.
	maxDisks = 1000
)

// Allocate makes an empty volume. A volume larger than the free space is
// refused (ErrNoSpace), although images are sparse: volumes that fit one by one may still fill the
// storage together. Errors: see storage.Driver.
func (d *Driver) Allocate(ctx context.Context, a storage.Allocation) (storage.Volume, error) {
	a, err := d.wanted(a)
	if err != nil {
		return storage.Volume{}, err
	}
	if a.Size <= 0 || a.Size > maxSize {
		return storage.Volume{}, model.Invalidf("size", "%d bytes cannot be the size of a volume", a.Size)
	}
	a.Size = roundUp(a.Size, sizeUnit)
	return within(ctx, d, func() (storage.Volume, error) {
		if err := d.fits(a.Size); err != nil {
			return storage.Volume{}, err
		}
		return d.make(ctx, a, func(part string) error { return d.createImage(ctx, part, a) })
	})
}

// Import copies an image file of this node into a new volume. Size 0 takes the
// image's own; a larger one grows the volume. An image that refers to another file is refused.
func (d *Driver) Import(ctx context.Context, a storage.Allocation, file string) (storage.Volume, error) {
	a, err := d.wanted(a)
	if err != nil {
		return storage.Volume{}, err
	}
	return within(ctx, d, func() (storage.Volume, error) {
		src, err := inspect(ctx, file)
		if err != nil {
			return storage.Volume{}, err
		}
		if a.Size != 0 && a.Size < src.VirtualSize {
			return storage.Volume{}, model.Invalidf("size", "the image %s has %s, more than the %s asked for", file, units.FormatBytes(src.VirtualSize), units.FormatBytes(a.Size))
		}
		if a.Size > maxSize {
			return storage.Volume{}, model.Invalidf("size", "%d bytes cannot be the size of a volume", a.Size)
		}
		a.Size = roundUp(cmp.Or(a.Size, src.VirtualSize), importUnit)
		if err := d.fits(src.ActualSize); err != nil {
			return storage.Volume{}, err
		}
		return d.make(ctx, a, func(part string) error { return d.copyImage(ctx, part, a, file, src) })
	})
}

// wanted checks an allocation and fills in the format.
func (d *Driver) wanted(a storage.Allocation) (storage.Allocation, error) {
	if d.cfg.Content != nil && !slices.Contains(d.cfg.Content, "images") {
		return a, model.Invalidf("content", "storage %s is not for disks: its content is %s", d.cfg.Name, strings.Join(d.cfg.Content, ","))
	}
	if _, err := model.ParseVMID(a.VMID.String()); err != nil {
		return a, err
	}
	for _, f := range []storage.Format{storage.Raw, storage.QCOW2} {
		base, has := strings.CutSuffix(a.Name, "."+string(f))
		if !has {
			continue
		}
		if a.Format != "" && a.Format != f {
			return a, model.Invalidf("filename", "%q does not end in .%s, the format asked for", a.Name, a.Format)
		}
		a.Name, a.Format = base, f
		break
	}
	a.Format = cmp.Or(a.Format, storage.Raw)
	if a.Format != storage.Raw && a.Format != storage.QCOW2 {
		return a, model.Invalidf("format", "%q is not supported by storage %s: use raw or qcow2", a.Format, d.cfg.Name)
	}
	if a.Name != "" {
		prefix := "vm-" + a.VMID.String() + "-"
		if !strings.HasPrefix(a.Name, prefix) || !fileName.MatchString(a.Name+".raw") {
			return a, model.Invalidf("filename", "%q is not allowed: write %s and then letters, digits, '.', '-' and '_', such as %sdisk-0", a.Name, prefix, prefix)
		}
	}
	if a.Size < 0 {
		return a, model.Invalidf("size", "%d bytes cannot be the size of a volume", a.Size)
	}
	return a, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// make lets fill make the image under a passing name and then gives it its own.
func (d *Driver) make(ctx context.Context, a storage.Allocation, fill func(part string) error) (v storage.Volume, err error) {
	dir := filepath.Join(d.images(), a.VMID.String())
	part, err := makePart(dir)
	defer func() {
		if err != nil {
			_ = os.Remove(dir) // succeeds if it is empty, as it was before
		}
	}()
	if err != nil {
		return v, d.translate("make a volume", err)
	}
	defer func() { _ = os.Remove(part) }()
	if err := fill(part); err != nil {
		return v, err
	}
	if err := syncFile(part); err != nil {
		return v, d.translate("make a volume", err)
	}
	path, err := d.publish(ctx, a, dir, part)
	if err != nil {
		return v, err
	}
	v = storage.Volume{ID: d.cfg.Name + ":" + a.VMID.String() + "/" + filepath.Base(path), VMID: a.VMID, Format: a.Format}
	if err := errors.Join(syncFile(dir), measure(path, &v)); err != nil {
		return storage.Volume{}, errors.Join(d.translate("make a volume", err), os.Remove(path))
	}
	return v, nil
}

// makePart makes the file in which an image comes to be.
func makePart(dir string) (path string, err error) {
	// Whoever deletes the guest's last volume removes the directory, perhaps just now.
	for range 10 {
		if err = os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		removeOldParts(dir)
		var f *os.File
		if f, err = os.CreateTemp(dir, partPrefix); err == nil {
			return f.Name(), f.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", err
}

// publish gives the finished image its name. A link fails if the name is taken, on every node
// and file system alike, which a rename does not.
func (d *Driver) publish(ctx context.Context, a storage.Allocation, dir, part string) (string, error) {
	if ctx.Err() != nil {
		return "", d.unavailable(ctx.Err())
	}
	if a.Name != "" {
		path := filepath.Join(dir, a.Name+"."+string(a.Format))
		err := os.Link(part, path)
		if errors.Is(err, fs.ErrExist) {
			return "", model.Errorf(storage.ErrExists, "volume %s:%s/%s exists already", d.cfg.Name, a.VMID, filepath.Base(path))
		}
		return path, d.translate("make a volume", err)
	}
	for n := range maxDisks {
		base := filepath.Join(dir, fmt.Sprintf("vm-%s-disk-%d", a.VMID, n))
		if exists(base+".raw") || exists(base+".qcow2") {
			continue
		}
		path := base + "." + string(a.Format)
		err := os.Link(part, path)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		return path, d.translate("make a volume", err)
	}
	return "", model.Errorf(storage.ErrExists, "guest %s has %d volumes on storage %s: delete some", a.VMID, maxDisks, d.cfg.Name)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// removeOldParts clears up after nodes that died while they made a volume.
func removeOldParts(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the next step meets the same error and reports it
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), partPrefix) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > partAge {
			_ = os.Remove(filepath.Join(dir, e.Name())) // another node may be faster
		}
	}
}

// translate turns an error of the file system into one of the storage's; nil stays nil.
func (d *Driver) translate(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return d.noSpace(err.Error())
	case errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.EINVAL):
		return model.Invalidf("size", "the file system of storage %s cannot hold such a file: %v", d.cfg.Name, err)
	}
	return model.Errorf(storage.ErrUnavailable, "storage %s: %s: %v", d.cfg.Name, what, err)
}

func (d *Driver) createImage(ctx context.Context, part string, a storage.Allocation) error {
	if a.Format == storage.Raw {
		return d.translate("make a volume", os.Truncate(part, a.Size))
	}
	return d.qemuImg(ctx, "create", "-q", "-f", "qcow2", part, strconv.FormatInt(a.Size, 10))
}

func (d *Driver) copyImage(ctx context.Context, part string, a storage.Allocation, file string, src image) error {
	if err := d.qemuImg(ctx, "convert", "-q", "-f", src.Format, "-O", string(a.Format), file, part); err != nil {
		return err
	}
	if a.Size == src.VirtualSize {
		return nil
	}
	return d.qemuImg(ctx, "resize", "-q", "-f", string(a.Format), part, strconv.FormatInt(a.Size, 10))
}

// qemuImg runs qemu-img for its effect.
func (d *Driver) qemuImg(ctx context.Context, args ...string) error {
	_, err := runQemuImg(ctx, args...)
	var failed *toolError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return model.Errorf(storage.ErrUnavailable, "storage %s: qemu-img %s was stopped: %v", d.cfg.Name, args[0], ctx.Err())
	case errors.As(err, &failed) && strings.Contains(failed.stderr, "No space left on device"):
		return d.noSpace("qemu-img " + args[0] + " filled it")
	case errors.As(err, &failed) && failed.locked():
		return model.Errorf(storage.ErrInUse, "an image that storage %s reads is in use by another process: stop that first", d.cfg.Name)
	case errors.As(err, &failed) && strings.Contains(failed.stderr, "too large"):
		return model.Invalidf("size", "%s", failed.stderr)
	}
	return model.Errorf(storage.ErrUnavailable, "storage %s: %v", d.cfg.Name, err)
}

type toolError struct {
	command, stderr string
}

func (e *toolError) Error() string { return e.command + ": " + e.stderr }

// locked is true if another process has the image open.
func (e *toolError) locked() bool {
	return strings.Contains(e.stderr, "Is another process using the image")
}

func runQemuImg(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, model.Errorf(storage.ErrUnavailable, "qemu-img is not installed on this node: install qemu-utils")
	}
	if err != nil {
		return nil, &toolError{"qemu-img " + args[0], cmp.Or(strings.TrimSpace(stderr.String()), err.Error())}
	}
	return out, nil
}

// image is what qemu-img info says of a file.
type image struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	ActualSize  int64  `json:"actual-size"`
	Backing     string `json:"backing-filename"`
	Specific    struct {
		Data struct {
			DataFile string `json:"data-file"`
		} `json:"data"`
	} `json:"format-specific"`
}

// inspect looks at the image to be imported.
func inspect(ctx context.Context, file string) (image, error) {
	var img image
	if !filepath.IsAbs(file) {
		return img, model.Invalidf("import-from", "%q is not an absolute path", file)
	}
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return img, model.Errorf(storage.ErrNotFound, "the image %s does not exist on this node", file)
	} else if err != nil {
		return img, model.Errorf(storage.ErrUnavailable, "the image %s: %v", file, err)
	}
	if !info.Mode().IsRegular() {
		return img, model.Invalidf("import-from", "%s is not a regular file", file)
	}
	out, err := runQemuImg(ctx, "info", "--output=json", file)
	var failed *toolError
	if errors.As(err, &failed) && failed.locked() {
		return img, model.Errorf(storage.ErrInUse, "the image %s is in use by another process: stop that first", file)
	} else if err != nil {
		return img, model.Errorf(storage.ErrUnavailable, "the image %s cannot be read: %v", file, err)
	}
	if err := json.Unmarshal(out, &img); err != nil {
		return img, fmt.Errorf("read what qemu-img says of %s: %w", file, err)
	}
	if img.Backing != "" || img.Specific.Data.DataFile != "" {
		return img, model.Invalidf("import-from", "the image %s refers to another file (%s%s): flatten it first with qemu-img convert", file, img.Backing, img.Specific.Data.DataFile)
	}
	return img, nil
}

// qcow2Size reads the guest's size from the header, 0 if it is none: magic at
// 0, size at 24, big-endian (QEMU's docs/interop/qcow2.txt).
func qcow2Size(r io.ReaderAt) int64 {
	var h [32]byte
	if _, err := r.ReadAt(h[:], 0); err != nil || string(h[:4]) != "QFI\xfb" {
		return 0
	}
	size := binary.BigEndian.Uint64(h[24:])
	if size > uint64(maxSize) {
		return 0
	}
	return int64(size)
}

// syncFile makes a file's or directory's content survive a loss of power.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
