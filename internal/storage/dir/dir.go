// Package dir keeps guests' disks as files in a directory: raw (sparse) and
// qcow2, laid out as Proxmox VE does, <path>/images/<vmid>/vm-<vmid>-disk-<n>.<format>.
//
// It does not mount anything and does not decide who may write an image: the
// image locks of QEMU, which it respects, are a second line of defence behind the lease.
//
// Invariants: a volume has its final name only when it is complete, so nobody
// sees half of one and two nodes that allocate at once in a shared directory get
// different volumes; an operation that fails has left nothing; no name leads out
// of the directory. Start reading with [New] and [Driver.Allocate].
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/sys"
)

// Config is one directory storage, as storage.cfg describes it.
type Config struct {
	Name string // the storage's id
	Path string // absolute
	// Shared: every node sees this directory with the same files.
	Shared bool
	// LateWrites: see storage.Features.
	LateWrites bool
	// Content lists what may be kept here, "images" among it for disks. nil allows images.
	Content []string
	// Mountpoint, if it is not empty, must be a mount point for the storage to be
	// available: without it an unmounted directory would fill the disk below. It is
	// Proxmox VE's option is_mountpoint: "yes" stands for Path itself.
	Mountpoint string
}

// Driver implements storage.Driver. It has no state but its Config and is safe
// for concurrent use, also with drivers of other nodes on the same directory.
type Driver struct {
	cfg Config
}

var (
	_ storage.Driver     = (*Driver)(nil)
	_ storage.UseChecker = (*Driver)(nil)
)

var (
	storageID = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]$`)
	fileName  = regexp.MustCompile(`^(?:vm|base)-([1-9][0-9]{2,8})-[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}\.(raw|qcow2)$`)
)

// New checks the configuration. It does not touch the directory: a storage that
// is not there now may be there later.
func New(cfg Config) (*Driver, error) {
	if !storageID.MatchString(cfg.Name) {
		return nil, model.Invalidf("storage", "%q cannot name a storage: start with a letter, then letters, digits, '-', '_' and '.'", cfg.Name)
	}
	if !filepath.IsAbs(cfg.Path) || filepath.Clean(cfg.Path) != cfg.Path || cfg.Path == "/" || strings.ContainsAny(cfg.Path, "\n\x00") {
		return nil, model.Invalidf("path", "%q is not the path of a directory: write an absolute path without '.', '..' and a '/' at its end", cfg.Path)
	}
	if cfg.Mountpoint == "yes" || cfg.Mountpoint == "1" {
		cfg.Mountpoint = cfg.Path
	}
	if cfg.Mountpoint == "no" || cfg.Mountpoint == "0" {
		cfg.Mountpoint = ""
	}
	if cfg.Mountpoint != "" && !filepath.IsAbs(cfg.Mountpoint) {
		return nil, model.Invalidf("is_mountpoint", "%q is neither yes, no nor an absolute path", cfg.Mountpoint)
	}
	return &Driver{cfg}, nil
}

// Features tells what the configuration declares.
func (d *Driver) Features() storage.Features {
	return storage.Features{Shared: d.cfg.Shared, LateWrites: d.cfg.LateWrites}
}

// Pill returns <path>/.sauh/fence/<node>, "" if the storage is not shared. The
// directory is made by whoever writes the file first. node is a node's name or longer, of the same letters.
func (d *Driver) Pill(node string) string {
	if !d.cfg.Shared || node == "" || strings.Trim(node, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return ""
	}
	return filepath.Join(d.cfg.Path, ".sauh", "fence", node)
}

// images is the directory with one directory a guest.
func (d *Driver) images() string { return filepath.Join(d.cfg.Path, "images") }

// Capacity returns the space of the file system that holds the directory.
func (d *Driver) Capacity(ctx context.Context) (storage.Capacity, error) {
	return within(ctx, d, func() (storage.Capacity, error) {
		s, err := sys.StatFS(d.cfg.Path)
		if err != nil {
			return storage.Capacity{}, d.unavailable(err)
		}
		return storage.Capacity{Total: s.Total, Used: s.Total - s.Free, Available: s.Available}, nil
	})
}

// grace is how long an operation whose time is over may take to clear up; it
// takes milliseconds unless the storage itself hangs.
const grace = 300 * time.Millisecond

// within runs f after the storage has been seen to be there. It returns when
// ctx is done, even if the kernel still waits for a file server: f then ends by itself when
// that answers, and looks at ctx before it leaves anything.
func within[T any](ctx context.Context, d *Driver, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	go func() {
		if err := d.check(); err != nil {
			results <- result{err: err}
			return
		}
		value, err := f()
		results <- result{value, err}
	}()
	select {
	case r := <-results:
		return r.value, r.err
	case <-ctx.Done():
	}
	// What can stop stops now and clears up after itself.
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case r := <-results:
		return r.value, r.err
	case <-timer.C:
		var none T
		return none, storage.Away("storage %s does not answer: %s: %v", d.cfg.Name, d.cfg.Path, ctx.Err())
	}
}

// check reports whether the directory is there.
func (d *Driver) check() error {
	info, err := os.Stat(d.cfg.Path)
	if err != nil {
		return d.unavailable(err)
	}
	if !info.IsDir() {
		return storage.Away("storage %s is not available: %s is not a directory", d.cfg.Name, d.cfg.Path)
	}
	if d.cfg.Mountpoint == "" {
		return nil
	}
	mounted, err := isMountpoint(d.cfg.Mountpoint)
	if err != nil {
		return d.unavailable(err)
	}
	if !mounted {
		return storage.Away("storage %s is not available: nothing is mounted on %s", d.cfg.Name, d.cfg.Mountpoint)
	}
	return nil
}

func (d *Driver) unavailable(err error) error {
	return storage.Away("storage %s is not available: %v", d.cfg.Name, err)
}

// isMountpoint looks in the kernel's list, because a bind mount has the same
// device number as what is around it.
func isMountpoint(path string) (bool, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	// The kernel writes these characters in octal.
	escaped := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(real)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == escaped {
			return true, nil
		}
	}
	return false, nil
}

// split takes a volume id apart: the file's path, the guest, the format.
func (d *Driver) split(volid string) (path string, v storage.Volume, err error) {
	name, ok := strings.CutPrefix(volid, d.cfg.Name+":")
	if !ok {
		return "", v, model.Invalidf("volid", "%q is not a volume of storage %s", volid, d.cfg.Name)
	}
	dir, file, ok := strings.Cut(name, "/")
	m := fileName.FindStringSubmatch(file)
	if !ok || m == nil || m[1] != dir {
		return "", v, model.Invalidf("volid", "%q is not the name of a volume: write %s:100/vm-100-disk-0.raw", volid, d.cfg.Name)
	}
	id, err := model.ParseVMID(dir)
	if err != nil {
		return "", v, err
	}
	return filepath.Join(d.images(), dir, file), storage.Volume{ID: volid, VMID: id, Format: storage.Format(m[2])}, nil
}

// File returns the image's path and format.
func (d *Driver) File(ctx context.Context, volid string) (string, storage.Format, error) {
	path, v, err := d.split(volid)
	if err != nil {
		return "", "", err
	}
	_, err = within(ctx, d, func() (struct{}, error) {
		info, err := os.Lstat(path)
		if err == nil && !info.Mode().IsRegular() {
			return struct{}{}, model.Errorf(storage.ErrUnavailable, "volume %s is not a regular file", volid)
		}
		return struct{}{}, d.volumeError(volid, err)
	})
	if err != nil {
		return "", "", err
	}
	return path, v.Format, nil
}

// volumeError names the volume in an error about its file; nil stays nil.
func (d *Driver) volumeError(volid string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return model.Errorf(storage.ErrNotFound, "volume %s does not exist", volid)
	case storage.IsAway(err):
		return storage.Away("volume %s: %v", volid, err)
	}
	return model.Errorf(storage.ErrUnavailable, "volume %s: %v", volid, err)
}

// List returns the volumes in the order of guest and name. Files that are no
// volumes are passed over. A qcow2 file whose header is broken is listed with size 0.
func (d *Driver) List(ctx context.Context) ([]storage.Volume, error) {
	return within(ctx, d, func() ([]storage.Volume, error) {
		guests, err := os.ReadDir(d.images())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			return nil, d.unavailable(err)
		}
		var volumes []storage.Volume
		for _, g := range guests {
			if _, err := model.ParseVMID(g.Name()); err != nil || !g.IsDir() {
				continue
			}
			more, err := d.listGuest(ctx, g.Name())
			if err != nil {
				return nil, err
			}
			volumes = append(volumes, more...)
		}
		return volumes, nil
	})
}

func (d *Driver) listGuest(ctx context.Context, id string) ([]storage.Volume, error) {
	files, err := os.ReadDir(filepath.Join(d.images(), id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // deleted meanwhile
	} else if err != nil {
		return nil, d.unavailable(err)
	}
	var volumes []storage.Volume
	for _, f := range files {
		if ctx.Err() != nil {
			return nil, d.unavailable(ctx.Err())
		}
		path, v, err := d.split(d.cfg.Name + ":" + id + "/" + f.Name())
		if err != nil || !f.Type().IsRegular() {
			continue
		}
		err = measure(path, &v)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, d.volumeError(v.ID, err)
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// measure fills in an image's sizes.
func measure(path string, v *storage.Volume) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	v.Size = info.Size()
	if v.Format == storage.QCOW2 {
		v.Size = qcow2Size(f)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		v.Used = st.Blocks * 512 // st_blocks counts 512-byte units whatever the file system
	}
	return nil
}

// Delete removes a volume. The image's lock is held while it goes, so a QEMU
// cannot open it in between.
func (d *Driver) Delete(ctx context.Context, volid string) error {
	path, _, err := d.split(volid)
	if err != nil {
		return err
	}
	_, err = within(ctx, d, func() (struct{}, error) { return struct{}{}, d.remove(ctx, volid, path) })
	return err
}

// CheckUnused takes the image's lock for a moment.
func (d *Driver) CheckUnused(ctx context.Context, volid string) error {
	path, _, err := d.split(volid)
	if err != nil {
		return err
	}
	_, err = within(ctx, d, func() (struct{}, error) {
		f, err := d.lock(volid, path)
		if err == nil {
			err = f.Close()
		}
		return struct{}{}, err
	})
	return err
}

// QEMU locks bytes 100 to 104 of an image for what it does with it and 200 to
// 204 for what it does not let others do (block/file-posix.c); its lock bytes end below 300.
const (
	imageLockStart = 100
	imageLockBytes = 200
)

// lock opens an image so that no QEMU can, until the file is closed.
func (d *Driver) lock(volid, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, d.volumeError(volid, err)
	}
	err = sys.TryLockRange(f, imageLockStart, imageLockBytes)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return nil, model.Errorf(storage.ErrInUse, "volume %s is in use: stop the guest or the program that has it open", volid)
	}
	return nil, d.volumeError(volid, err)
}

func (d *Driver) remove(ctx context.Context, volid, path string) error {
	f, err := d.lock(volid, path)
	if err != nil {
		return err
	}
	defer f.Close()
	if ctx.Err() != nil {
		return d.unavailable(ctx.Err())
	}
	if err := os.Remove(path); err != nil {
		return d.volumeError(volid, err)
	}
	// The guest's directory goes with its last volume; while it holds others the
	// kernel refuses, and that is right.
	if err := os.Remove(filepath.Dir(path)); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return d.volumeError(volid, err)
	}
	return nil
}

// fits compares a new volume with the space that is left. Images are sparse, so
// this reserves nothing; it refuses what could never be filled.
func (d *Driver) fits(size int64) error {
	s, err := sys.StatFS(d.cfg.Path)
	if err != nil {
		return d.unavailable(err)
	}
	if size > s.Available {
		return d.noSpace(fmt.Sprintf("%s wanted, %s available", units.FormatBytes(size), units.FormatBytes(s.Available)))
	}
	return nil
}

func (d *Driver) noSpace(detail string) error {
	return model.Errorf(storage.ErrNoSpace, "storage %s has not enough space: %s: delete volumes or use another storage", d.cfg.Name, detail)
}
