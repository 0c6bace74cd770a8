package pveconf_test

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// roundTrip checks what holds for any text: it is refused with a line of it, or printed byte for byte; and after a
// change it is read back with that change and nothing else.
func roundTrip(t *testing.T, text string) (accepted bool) {
	t.Helper()
	g, err := pveconf.ParseGuest([]byte(text))
	if err != nil {
		var invalid *model.InvalidError
		if !errors.As(err, &invalid) || invalid.Line < 1 || invalid.Line > strings.Count(text, "\n")+1 {
			t.Fatalf("%q: the error names no line: %v", text, err)
		}
		return false
	}
	if got := string(g.Bytes()); got != text {
		t.Fatalf("%q is printed as %q", text, got)
	}
	useEverything(g)
	for key, value := range map[string]string{"memory": "777", "description": "new: 50%25\n\ntext", "net31": "virtio,tag=5"} {
		if err := g.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	g.Delete("name")
	again, err := pveconf.ParseGuest(g.Bytes())
	if err != nil {
		t.Fatalf("%q became %q, which is refused: %v", text, g.Bytes(), err)
	}
	if diff := cmp.Diff(g.Values(), again.Values()); diff != "" {
		t.Fatalf("%q became %q (-set +read):\n%s", text, g.Bytes(), diff)
	}
	if a, b := len(g.Sections()), len(again.Sections()); a != b {
		t.Fatalf("%q became %q with %d sections instead of %d", text, g.Bytes(), b, a)
	}
	return true
}

// useEverything calls what reads a configuration, which must not panic.
func useEverything(g *pveconf.Guest) {
	_, _, _, _ = g.Drives(), g.Nets(), g.BootOrder(), pveconf.Unsupported(g)
	_, _, _, _ = g.USBs(), g.HostPCIs(), g.NUMANodes(), g.VirtioFS()
	_, _, _, _ = g.CloudInit(), g.SMBIOS(), g.CPU(), g.AgentOptions()
	_, _ = g.Snapshots()
	_, _ = g.Pending()
}

func FuzzParseGuest(f *testing.F) {
	for _, text := range []string{web, "", "memory: 512\n", "# x\n", "[a]\n[b]\nx", "cdrom: none\n", "name: a\r\ncores: 1\r\n", "net0: virtio\n", "[\n]"} {
		f.Add([]byte(text))
	}
	for _, text := range corpus(f) {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) { roundTrip(t, string(text)) })
}

// The same over real files with a few random changes, which go test runs each time.
func TestChangedFilesAreRefusedOrPrintedByteForByte(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	files := corpus(t)
	names := slices.Sorted(maps.Keys(files))
	var lines []string
	for _, name := range names {
		lines = append(lines, strings.SplitAfter(files[name], "\n")...)
	}
	rounds, accepted := 5000, 0 // a second, and 15 with the race detector
	if testing.Short() {
		rounds = 500
	}
	for range rounds {
		text := files[names[r.IntN(len(names))]]
		for range 1 + r.IntN(3) {
			text = mutate(r, text, lines)
		}
		if roundTrip(t, text) {
			accepted++
		}
	}
	if accepted < rounds/10 || accepted > rounds*95/100 {
		t.Errorf("%d of %d texts were accepted: the changes try too little", accepted, rounds)
	}
}

// mutate makes one small change.
func mutate(r *rand.Rand, text string, lines []string) string {
	parts := strings.SplitAfter(text, "\n")
	i := r.IntN(len(parts))
	at := r.IntN(len(text) + 1)
	switch r.IntN(6) {
	case 0: // another file's line
		return strings.Join(slices.Insert(parts, i, lines[r.IntN(len(lines))]), "")
	case 1:
		return strings.Join(slices.Delete(parts, i, i+1), "")
	case 2: // swap two lines
		j := r.IntN(len(parts))
		parts[i], parts[j] = parts[j], parts[i]
		return strings.Join(parts, "")
	case 3: // a sign that means something
		const signs = ":,=;#[]%-\r\n\t 0x\x00\xff"
		return text[:at] + string(signs[r.IntN(len(signs))]) + text[at:]
	case 4: // cut the end off
		return text[:at]
	}
	end := min(len(text), at+1+r.IntN(4))
	return text[:at] + text[end:]
}
