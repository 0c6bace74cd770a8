package image

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/lab/guest"
)

// entries reads the names, modes and contents back out of an archive.
func entries(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	pad := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; ; {
		if string(archive[at:at+6]) != "070701" {
			t.Fatalf("no entry at %d", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(archive[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(archive[at+110 : at+110+nameSize-1])
		if name == "TRAILER!!!" {
			return out
		}
		data := pad(at + 110 + nameSize)
		out[name] = strconv.FormatInt(int64(mode), 8) + " " + string(archive[data:data+size])
		at = pad(data + size)
	}
}

func TestTheInitramfsHoldsInitModulesAndConsole(t *testing.T) {
	got, err := initramfs([]byte("program"), []file{{"00-a.ko", []byte("A")}, {"01-b.ko", []byte("BB")}}, []file{{"sauh", []byte("S")}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"dev": "40755 ", "proc": "40755 ", "sys": "40755 ", "modules": "40755 ",
		"dev/console": "20600 ", "modules/00-a.ko": "100644 A", "modules/01-b.ko": "100644 BB", "init": "100755 program", "sauh": "100755 S",
	}
	r, err := gzip.NewReader(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, entries(t, archive)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheKernelsPackageAndVersionAreReadFromApt(t *testing.T) {
	depends := "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n"
	policy := "linux-image:\n  Installed: (none)\n  Candidate: 6.1.192-2\n  Version table:\n"
	if got := field(depends, "Depends:"); got != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("package %q", got)
	}
	if got := field(policy, "Candidate:"); got != "6.1.192-2" {
		t.Errorf("version %q", got)
	}
	if got := field("", "Candidate:"); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}

func TestModulesThatAreCompressedAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "virtio-blk.ko"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := findModules(dir)
	if diff := cmp.Diff(map[string]string{"virtio_blk": filepath.Join(dir, "virtio-blk.ko")}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := os.WriteFile(filepath.Join(dir, "virtio_net.ko.xz"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := findModules(dir); err == nil || !strings.Contains(err.Error(), "virtio_net.ko.xz is compressed") {
		t.Errorf("got %v", err)
	}
}

func TestTheDiskHasTwoPartitionsWhereTheGuestLooksForThem(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := writeTable(disk, bytes.Repeat([]byte{0x90}, 440)); err != nil {
		t.Fatal(err)
	}
	mbr, err := os.ReadFile(disk)
	if err != nil || len(mbr) != guest.DiskSize {
		t.Fatalf("%d bytes, %v", len(mbr), err)
	}
	type part struct {
		Flag, Kind byte
		Off, Size  uint32 // sectors
	}
	read := func(b []byte) part {
		return part{b[0], b[4], binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])}
	}
	want := []part{{0x80, 0x0e, 2048, 63488}, {0, 0xda, 65536, 196608}}
	if diff := cmp.Diff(want, []part{read(mbr[446:]), read(mbr[462:])}); diff != "" || mbr[510] != 0x55 || mbr[511] != 0xaa {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestACopyKeepsContentAndHoles(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	_, err = f.WriteAt([]byte("middle"), size/2)
	if err := errors.Join(err, f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs, %v", err)
	}
	st, err := os.Stat(dst)
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
		t.Errorf("the copy of one page in a hole takes %d bytes", used)
	}
	if err := Copy(dst, src); !errors.Is(err, os.ErrExist) {
		t.Errorf("copy over a file that exists: %v", err)
	}
}

func TestPersonalizeWritesWhatTheGuestReads(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := writeTable(disk, nil); err != nil {
		t.Fatal(err)
	}
	want := Config{IP: netip.MustParsePrefix("10.10.1.100/24"), Hostname: "probe1"}
	if err := Personalize(disk, want); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	got, err := guest.DecodeConfig(image[guest.ConfigOffset:][:guest.ConfigSize])
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := Personalize(disk, Config{}); err == nil {
		t.Error("a configuration without an address was written")
	}
	if err := Personalize(disk+"x", want); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
}

func TestAnImagesNameFollowsItsContent(t *testing.T) {
	k := &kernel{pkg: "linux-image", version: "1"}
	base := key(k, []byte("init"))
	if again := key(k, []byte("init")); again != base {
		t.Errorf("the same content has two names, %s and %s", base, again)
	}
	for name, other := range map[string]string{
		"program": key(k, []byte("init2")),
		"version": key(&kernel{pkg: "linux-image", version: "2"}, []byte("init")),
		"package": key(&kernel{pkg: "linux-image2", version: "1"}, []byte("init")),
	} {
		if other == base {
			t.Errorf("another %s, the same name", name)
		}
	}
}

func TestAMissingGuestProgramIsNamed(t *testing.T) {
	_, err := Build(t.Context(), Options{Guest: "/nowhere/sauh-guest", CacheDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "/nowhere/sauh-guest") {
		t.Errorf("got %v", err)
	}
}

func TestABuiltImageIsFoundAgain(t *testing.T) {
	user, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	cache := filepath.Join(user, "sauh-lab")
	program := filepath.Join(t.TempDir(), "sauh-guest")
	if err := os.WriteFile(program, []byte("any program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := Options{Guest: program, CacheDir: cache}
	path, err := Build(t.Context(), o)
	if errors.Is(err, ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	before, err := os.Stat(path)
	if err != nil || before.Size() != guest.DiskSize {
		t.Fatalf("%v, %v", before, err)
	}
	again, err := Build(t.Context(), o)
	if err != nil || again != path {
		t.Fatalf("second build: %s, %v; want %s", again, err, path)
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the image was built twice, %v", err)
	}
}
