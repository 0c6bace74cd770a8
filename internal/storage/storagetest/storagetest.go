// Package storagetest is the conformance suite of storage drivers: what
// package storage promises, as tests that every driver passes on its real back end.
//
// It is not a test of QEMU and needs no running guest; a driver's own package tests what
// only that driver has. Start reading with [Run].
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
	"sauh.dev/sauh/internal/storage"
)

// Setup says how to get the drivers to test.
type Setup struct {
	// New returns a driver on an empty storage with at least 100 MiB, and a second
	// one on the same storage, as another node has it; nil if it is not shared. Its name is "store".
	New func(t *testing.T) (first, second storage.Driver)
	// Small returns a driver on an empty storage with less than 20 MiB; nil skips what needs it.
	Small func(t *testing.T) storage.Driver
	// Gone returns a driver whose storage is not there; nil skips what needs it.
	Gone func(t *testing.T) storage.Driver
}

// Run runs the suite.
func Run(t *testing.T, s Setup) {
	tests := []struct {
		name string
		run  func(t *testing.T, s Setup)
	}{
		{"AVolumeIsListedAndFoundAndGoneAfterDelete", lifecycle},
		{"AnAllocationWithoutANameTakesTheNextFreeNumber", numbering},
		{"ANameThatIsTakenIsRefused", taken},
		{"BadAllocationsAreInvalid", badAllocations},
		{"StrangeVolumeNamesAreInvalid", strangeNames},
		{"WhatDoesNotExistIsNotFound", notFound},
		{"ManyAllocationsAtOnceGetDifferentVolumes", concurrent},
		{"OneNameAllocatedManyTimesAtOnceIsGivenOnce", oneName},
		{"AnImageInUseIsNotDeleted", inUse},
		{"AnImportHasTheContentOfTheFile", importing},
		{"AnImportMayGrowAndNotShrink", importSize},
		{"AGuestCanUseTheWholeOfAnOddSize", oddSizes},
		{"AVolumeLargerThanTheStorageIsRefused", tooLarge},
		{"AnImportThatFillsTheStorageLeavesNothing", importFull},
		{"CapacityAddsUp", capacity},
		{"AStorageThatIsNotThereIsUnavailable", gone},
		{"AnEndedContextEndsACall", ended},
		{"APillIsTheSameForEveryNode", pill},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

const guest = model.VMID(100)

func formats() []storage.Format { return []storage.Format{storage.Raw, storage.QCOW2} }

func first(t *testing.T, s Setup) storage.Driver {
	t.Helper()
	d, _ := s.New(t)
	return d
}

func allocate(t *testing.T, d storage.Driver, a storage.Allocation) storage.Volume {
	t.Helper()
	v, err := d.Allocate(t.Context(), a)
	if err != nil {
		t.Fatalf("Allocate(%+v): %v", a, err)
	}
	return v
}

func list(t *testing.T, d storage.Driver) []string {
	t.Helper()
	vs, err := d.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	var ids []string
	for _, v := range vs {
		ids = append(ids, v.ID)
	}
	return ids
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %q", what, err, want)
	}
}

func needImg(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
}

func lifecycle(t *testing.T, s Setup) {
	for _, f := range formats() {
		t.Run(string(f), func(t *testing.T) {
			needImg(t)
			d := first(t, s)
			v := allocate(t, d, storage.Allocation{VMID: guest, Format: f, Size: 8 * units.MiB})
			want := storage.Volume{ID: v.ID, VMID: guest, Format: f, Size: 8 * units.MiB, Used: v.Used}
			if diff := cmp.Diff(want, v); diff != "" {
				t.Errorf("Allocate (-want +got):\n%s", diff)
			}
			vs, err := d.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]storage.Volume{v}, vs); diff != "" {
				t.Errorf("List (-allocated +listed):\n%s", diff)
			}
			if _, got, err := d.File(t.Context(), v.ID); err != nil || got != f {
				t.Errorf("File: format %s, error %v", got, err)
			}
			if err := d.Delete(t.Context(), v.ID); err != nil {
				t.Fatal(err)
			}
			if ids := list(t, d); len(ids) != 0 {
				t.Errorf("after Delete the storage holds %v", ids)
			}
		})
	}
}

func numbering(t *testing.T, s Setup) {
	needImg(t)
	d := first(t, s)
	a := storage.Allocation{VMID: guest, Size: units.MiB}
	zero := allocate(t, d, a)
	a.Format = storage.QCOW2
	one := allocate(t, d, a)
	if err := d.Delete(t.Context(), zero.ID); err != nil {
		t.Fatal(err)
	}
	again := allocate(t, d, a)
	other := allocate(t, d, storage.Allocation{VMID: 101, Size: units.MiB, Format: storage.QCOW2})
	want := []string{"store:100/vm-100-disk-1.qcow2", "store:100/vm-100-disk-0.qcow2", "store:101/vm-101-disk-0.qcow2"}
	if diff := cmp.Diff(want, []string{one.ID, again.ID, other.ID}); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
}

func taken(t *testing.T, s Setup) {
	d := first(t, s)
	a := storage.Allocation{VMID: guest, Name: "vm-100-data", Format: storage.Raw, Size: units.MiB}
	v := allocate(t, d, a)
	_, err := d.Allocate(t.Context(), a)
	wantErr(t, "second Allocate", err, storage.ErrExists)
	if diff := cmp.Diff([]string{v.ID}, list(t, d)); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
}

func badAllocations(t *testing.T, s Setup) {
	d := first(t, s)
	for name, a := range map[string]storage.Allocation{
		"no guest":            {Size: units.MiB},
		"no size":             {VMID: guest},
		"negative size":       {VMID: guest, Size: -1},
		"largest number":      {VMID: guest, Size: 1<<63 - 1},
		"unknown format":      {VMID: guest, Size: units.MiB, Format: "vmdk"},
		"another guest's":     {VMID: guest, Size: units.MiB, Name: "vm-101-disk-0"},
		"path":                {VMID: guest, Size: units.MiB, Name: "../vm-100-disk-0"},
		"path after prefix":   {VMID: guest, Size: units.MiB, Name: "vm-100-../../x"},
		"blank":               {VMID: guest, Size: units.MiB, Name: "vm-100-a b"},
		"line break":          {VMID: guest, Size: units.MiB, Name: "vm-100-a\nb"},
		"comma":               {VMID: guest, Size: units.MiB, Name: "vm-100-a,b"},
		"option":              {VMID: guest, Size: units.MiB, Name: "-vm-100-a"},
		"empty after prefix":  {VMID: guest, Size: units.MiB, Name: "vm-100-"},
		"ending not the same": {VMID: guest, Size: units.MiB, Name: "vm-100-a.raw", Format: storage.QCOW2},
	} {
		_, err := d.Allocate(t.Context(), a)
		wantErr(t, name, err, model.ErrInvalid)
	}
	if ids := list(t, d); len(ids) != 0 {
		t.Errorf("left behind: %v", ids)
	}
}

func strangeNames(t *testing.T, s Setup) {
	d := first(t, s)
	for _, id := range []string{
		"", "store", "store:", "store:100", "store:100/", "other:100/vm-100-disk-0.raw", "store:100/../../etc/passwd",
		"store:../100/vm-100-disk-0.raw", "store:100/vm-101-disk-0.raw", "store:100/vm-100-disk-0", "store:/etc/passwd",
		"store:100/vm-100-disk-0.raw/x", "store:0100/vm-0100-disk-0.raw", "store:100/vm-100-a\x00.raw", "store:100/.sauh-part-1",
	} {
		_, _, err := d.File(t.Context(), id)
		wantErr(t, "File "+strconv.Quote(id), err, model.ErrInvalid)
		wantErr(t, "Delete "+strconv.Quote(id), d.Delete(t.Context(), id), model.ErrInvalid)
	}
}

func notFound(t *testing.T, s Setup) {
	d := first(t, s)
	const id = "store:100/vm-100-disk-7.raw"
	_, _, err := d.File(t.Context(), id)
	wantErr(t, "File", err, storage.ErrNotFound)
	wantErr(t, "Delete", d.Delete(t.Context(), id), storage.ErrNotFound)
	_, err = d.Import(t.Context(), storage.Allocation{VMID: guest}, filepath.Join(t.TempDir(), "none.raw"))
	wantErr(t, "Import", err, storage.ErrNotFound)
}

// concurrent and oneName use both drivers, as two nodes would.
func concurrent(t *testing.T, s Setup) {
	const each = 10
	var ids []string
	race(t, s, each, storage.Allocation{VMID: guest, Format: storage.Raw, Size: units.MiB}, func(v storage.Volume, err error) {
		if err != nil {
			t.Errorf("Allocate: %v", err)
		}
		ids = append(ids, v.ID)
	})
	slices.Sort(ids)
	if got := len(slices.Compact(ids)); got != 2*each {
		t.Errorf("%d allocations gave %d different volumes: %v", 2*each, got, ids)
	}
}

func oneName(t *testing.T, s Setup) {
	won := 0
	race(t, s, 10, storage.Allocation{VMID: guest, Name: "vm-100-only", Format: storage.Raw, Size: units.MiB}, func(_ storage.Volume, err error) {
		if err == nil {
			won++
		} else {
			wantErr(t, "Allocate", err, storage.ErrExists)
		}
	})
	if won != 1 {
		t.Errorf("%d allocations of one name succeeded, want 1", won)
	}
}

// race allocates each times on each of two drivers and hands the results to got, one at a time.
func race(t *testing.T, s Setup, each int, a storage.Allocation, got func(storage.Volume, error)) {
	one, two := s.New(t)
	if two == nil {
		two = one
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, d := range []storage.Driver{one, two} {
		for range each {
			wg.Go(func() {
				v, err := d.Allocate(t.Context(), a)
				mu.Lock()
				defer mu.Unlock()
				got(v, err)
			})
		}
	}
	wg.Wait()
}

func inUse(t *testing.T, s Setup) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("needs qemu-io")
	}
	for _, f := range formats() {
		t.Run(string(f), func(t *testing.T) {
			d := first(t, s)
			v := allocate(t, d, storage.Allocation{VMID: guest, Format: f, Size: units.MiB})
			path, _, err := d.File(t.Context(), v.ID)
			if err != nil {
				t.Fatal(err)
			}
			release := open(t, path, f)
			checker, checks := d.(storage.UseChecker)
			if checks {
				wantErr(t, "CheckUnused of an open image", checker.CheckUnused(t.Context(), v.ID), storage.ErrInUse)
			}
			wantErr(t, "Delete of an open image", d.Delete(t.Context(), v.ID), storage.ErrInUse)
			_, err = d.Import(t.Context(), storage.Allocation{VMID: guest}, path)
			wantErr(t, "Import of an open image", err, storage.ErrInUse)
			release()
			if checks {
				if err := checker.CheckUnused(t.Context(), v.ID); err != nil {
					t.Errorf("CheckUnused after it was closed: %v", err)
				}
			}
			if err := d.Delete(t.Context(), v.ID); err != nil {
				t.Errorf("Delete after it was closed: %v", err)
			}
		})
	}
}

// open opens an image as a QEMU does, and returns what closes it.
func open(t *testing.T, path string, f storage.Format) (release func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-f", string(f), path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its prompt says that the image is open and locked.
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatalf("qemu-io: %v", err)
	}
	return func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("qemu-io: %v", err)
		}
	}
}

func writeImage(t *testing.T, size int64) (path string, content []byte) {
	t.Helper()
	content = bytes.Repeat([]byte("a ledger entry of 32 bytes.....\n"), int(size/32))
	path = filepath.Join(t.TempDir(), "source.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func importing(t *testing.T, s Setup) {
	needImg(t)
	src, _ := writeImage(t, 2*units.MiB)
	for _, f := range formats() {
		t.Run(string(f), func(t *testing.T) {
			d := first(t, s)
			v, err := d.Import(t.Context(), storage.Allocation{VMID: guest, Format: f}, src)
			if err != nil {
				t.Fatal(err)
			}
			if v.Size != 2*units.MiB || v.Format != f {
				t.Errorf("got %+v", v)
			}
			path, _, err := d.File(t.Context(), v.ID)
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), "qemu-img", "compare", "-f", "raw", "-F", string(f), src, path).CombinedOutput()
			if err != nil {
				t.Errorf("the volume differs from its source: %s", out)
			}
		})
	}
}

// oddSizes: QEMU refuses to write to a raw image whose size is no multiple of what O_DIRECT wants, a page at most.
func oddSizes(t *testing.T, s Setup) {
	needImg(t)
	const page = 4 * units.KiB
	d := first(t, s)
	for _, f := range formats() {
		for _, size := range []int64{1, 1025, 5*units.MiB + 7} {
			v := allocate(t, d, storage.Allocation{VMID: guest, Format: f, Size: size})
			if v.Size < size || v.Size%page != 0 {
				t.Errorf("%d bytes as %s gave %d", size, f, v.Size)
			}
		}
		src, _ := writeImage(t, 2*units.MiB+700)
		v, err := d.Import(t.Context(), storage.Allocation{VMID: guest, Format: f}, src)
		if err != nil || v.Size < 2*units.MiB+700 || v.Size%page != 0 {
			t.Errorf("an image of an odd size as %s gave %d: %v", f, v.Size, err)
		}
	}
	if _, err := d.Import(t.Context(), storage.Allocation{VMID: guest, Size: 1<<63 - 1}, ""); err == nil {
		t.Error("an import of the largest number was taken")
	}
}

func importSize(t *testing.T, s Setup) {
	needImg(t)
	src, _ := writeImage(t, 2*units.MiB)
	d := first(t, s)
	v, err := d.Import(t.Context(), storage.Allocation{VMID: guest, Format: storage.QCOW2, Size: 5 * units.MiB}, src)
	if err != nil || v.Size != 5*units.MiB {
		t.Errorf("growing: %+v, %v", v, err)
	}
	_, err = d.Import(t.Context(), storage.Allocation{VMID: guest, Size: units.MiB}, src)
	wantErr(t, "shrinking", err, model.ErrInvalid)
	if n := len(list(t, d)); n != 1 {
		t.Errorf("%d volumes, want 1", n)
	}
}

func tooLarge(t *testing.T, s Setup) {
	d := first(t, s)
	for _, f := range formats() {
		_, err := d.Allocate(t.Context(), storage.Allocation{VMID: guest, Format: f, Size: 1 << 60})
		wantErr(t, string(f), err, storage.ErrNoSpace)
	}
	if ids := list(t, d); len(ids) != 0 {
		t.Errorf("left behind: %v", ids)
	}
}

// importFull imports what looks small, and is not: a qcow2 of compressed clusters.
func importFull(t *testing.T, s Setup) {
	needImg(t)
	if s.Small == nil {
		t.Skip("needs a small storage")
	}
	src, _ := writeImage(t, 32*units.MiB)
	packed := filepath.Join(t.TempDir(), "packed.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-c", "-O", "qcow2", src, packed).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v %s", err, out)
	}
	d := s.Small(t)
	before, err := d.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range formats() {
		_, err := d.Import(t.Context(), storage.Allocation{VMID: guest, Format: f}, packed)
		wantErr(t, string(f), err, storage.ErrNoSpace)
	}
	after, err := d.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("capacity (-before +after):\n%s", diff)
	}
}

func capacity(t *testing.T, s Setup) {
	c, err := first(t, s).Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Total <= 0 || c.Available <= 0 || c.Used < 0 || c.Used+c.Available > c.Total {
		t.Errorf("got %+v", c)
	}
}

func gone(t *testing.T, s Setup) {
	if s.Gone == nil {
		t.Skip("needs a storage that is not there")
	}
	d := s.Gone(t)
	const id = "store:100/vm-100-disk-0.raw"
	src, _ := writeImage(t, units.MiB)
	ctx := t.Context()
	_, err := d.Allocate(ctx, storage.Allocation{VMID: guest, Size: units.MiB})
	wantErr(t, "Allocate", err, storage.ErrUnavailable)
	_, err = d.Import(ctx, storage.Allocation{VMID: guest}, src)
	wantErr(t, "Import", err, storage.ErrUnavailable)
	_, err = d.List(ctx)
	wantErr(t, "List", err, storage.ErrUnavailable)
	_, err = d.Capacity(ctx)
	wantErr(t, "Capacity", err, storage.ErrUnavailable)
	_, _, err = d.File(ctx, id)
	wantErr(t, "File", err, storage.ErrUnavailable)
	wantErr(t, "File", err, storage.ErrAway)
	wantErr(t, "Delete", d.Delete(ctx, id), storage.ErrUnavailable)
}

func ended(t *testing.T, s Setup) {
	d := first(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	if _, err := d.Allocate(ctx, storage.Allocation{VMID: guest, Size: units.MiB}); err == nil {
		t.Error("Allocate succeeded")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s to notice", took)
	}
	if ids := list(t, d); len(ids) != 0 {
		t.Errorf("left behind: %v", ids)
	}
}

func pill(t *testing.T, s Setup) {
	one, two := s.New(t)
	if !one.Features().Shared {
		if p := one.Pill("n1"); p != "" {
			t.Errorf("a storage that is not shared has the pill %s", p)
		}
		return
	}
	if one.Pill("n1") != two.Pill("n1") || one.Pill("n1") == one.Pill("n2") || one.Pill("n1") == "" {
		t.Errorf("pills: %q, %q; another node's %q", one.Pill("n1"), two.Pill("n1"), one.Pill("n2"))
	}
}
