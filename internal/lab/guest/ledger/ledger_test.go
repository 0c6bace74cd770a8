package ledger_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/lab/guest/ledger"
)

// slots in the tests' regions.
const slots = 4096

// memory is a disk.
type memory struct {
	b    []byte
	fail error // of the next write
}

func newMemory() *memory { return &memory{b: make([]byte, slots*ledger.SlotSize)} }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.b[off:], p), nil
}

// slot is the bytes of record n.
func (m *memory) slot(n int) []byte { return m.b[(n-1)*ledger.SlotSize : n*ledger.SlotSize] }

func boot(b byte) ledger.BootID { return ledger.BootID{b} }

func clock() time.Time { return time.Unix(1000, 0) }

func open(t *testing.T, m *memory, id ledger.BootID) *ledger.Log {
	t.Helper()
	l, err := ledger.Open(m, int64(len(m.b)), id, clock, make([]byte, 64<<10))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, l *ledger.Log, n int) {
	t.Helper()
	for range n {
		if _, err := l.Append(fmt.Appendf(nil, "record %d", l.Last()+1)); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, m *memory) ledger.Report {
	t.Helper()
	r, err := ledger.Check(m, int64(len(m.b)), make([]byte, 64<<10))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// kinds of the problems and their places, "gap 3".
func kinds(r ledger.Report) []string {
	var out []string
	for _, p := range r.Problems {
		out = append(out, fmt.Sprintf("%s %d", p.Kind, p.Number))
	}
	return out
}

func TestARecordComesBackAsItWasWritten(t *testing.T) {
	want := ledger.Record{Number: 7, Boot: boot(1), Time: 42, Prev: 99, Payload: []byte("hello")}
	slot := make([]byte, ledger.SlotSize)
	sum, err := want.Encode(slot)
	if err != nil {
		t.Fatal(err)
	}
	got, gotSum, err := ledger.Decode(slot)
	if diff := cmp.Diff(want, got); diff != "" || err != nil || gotSum != sum {
		t.Errorf("err %v, checksum %x want %x, (-want +got):\n%s", err, gotSum, sum, diff)
	}
}

func TestEveryFlippedByteOfARecordIsFound(t *testing.T) {
	slot := make([]byte, ledger.SlotSize)
	if _, err := (ledger.Record{Number: 1, Payload: []byte("x")}).Encode(slot); err != nil {
		t.Fatal(err)
	}
	for i := range slot {
		bad := bytes.Clone(slot)
		bad[i] ^= 0x10
		if _, _, err := ledger.Decode(bad); !errors.Is(err, ledger.ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v, want ErrCorrupt", i, err)
		}
	}
}

func TestAPayloadThatDoesNotFitIsRefused(t *testing.T) {
	l := open(t, newMemory(), boot(1))
	if _, err := l.Append(make([]byte, ledger.MaxPayload+1)); err == nil {
		t.Error("appended")
	}
	if _, err := l.Append(make([]byte, ledger.MaxPayload)); err != nil {
		t.Errorf("largest payload: %v", err)
	}
}

func TestARestartFindsTheLastRecordByScanning(t *testing.T) {
	m := newMemory()
	for b, want := range []uint64{0, 10, 20} {
		l := open(t, m, boot(byte(b+1)))
		if l.Last() != want {
			t.Fatalf("boot %d: last record %d, want %d", b, l.Last(), want)
		}
		write(t, l, 10)
	}
	got := check(t, m)
	want := ledger.Report{Records: 30, Last: 30, Boots: []string{boot(1).String(), boot(2).String(), boot(3).String()}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestARestartContinuesBehindAHole(t *testing.T) {
	m := newMemory()
	write(t, open(t, m, boot(1)), 20)
	clear(m.slot(5))
	l := open(t, m, boot(2))
	if l.Last() != 20 {
		t.Fatalf("last record %d, want 20: a hole must not be filled again", l.Last())
	}
}

func TestAFailedWriteIsNotAcknowledgedAndItsNumberIsUsedAgain(t *testing.T) {
	m := newMemory()
	l := open(t, m, boot(1))
	write(t, l, 1)
	m.fail = errors.New("input/output error")
	if _, err := l.Append([]byte("lost")); err == nil {
		t.Fatal("acknowledged")
	}
	m.fail = nil
	r, err := l.Append([]byte("second"))
	if err != nil || r.Number != 2 {
		t.Errorf("receipt %+v, %v; want number 2", r, err)
	}
	if rep := check(t, m); !rep.OK() {
		t.Errorf("problems: %v", kinds(rep))
	}
}

func TestAFullLedgerSaysSo(t *testing.T) {
	l := open(t, newMemory(), boot(1))
	write(t, l, slots)
	if _, err := l.Append(nil); !errors.Is(err, ledger.ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
}

func TestTheCheckNamesWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, m *memory)
		want   []string
	}{
		"nothing":                 {func(*testing.T, *memory) {}, nil},
		"a record is missing":     {func(_ *testing.T, m *memory) { clear(m.slot(5)) }, []string{"gap 5"}},
		"a byte changed":          {func(_ *testing.T, m *memory) { m.slot(5)[100] ^= 1 }, []string{"corrupt 5"}},
		"a torn write at the end": {func(_ *testing.T, m *memory) { m.slot(11)[3] = 1 }, nil},
		"a record in two slots": {
			func(_ *testing.T, m *memory) { copy(m.slot(5), m.slot(4)) }, []string{"misplaced 5"},
		},
		"an old record came back": {
			// Record 5 as another boot wrote it: valid in itself, and neither neighbour knows it.
			func(t *testing.T, m *memory) {
				r, _, err := ledger.Decode(m.slot(5))
				if err != nil {
					t.Fatal(err)
				}
				r.Payload = []byte("older")
				if _, err := r.Encode(m.slot(5)); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"broken 6"},
		},
		"two writers": {
			// Both opened the ledger with ten records; the second overwrites what the first appended.
			func(t *testing.T, m *memory) {
				a, b := open(t, m, boot(1)), open(t, m, boot(2))
				write(t, a, 3)
				write(t, b, 2)
			},
			[]string{"broken 13", "stale 13"},
		},
		"a boot that was succeeded writes on": {
			func(t *testing.T, m *memory) {
				old := open(t, m, boot(1))
				write(t, open(t, m, boot(2)), 2)
				write(t, old, 1)
			},
			[]string{"broken 12"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			write(t, open(t, m, boot(1)), 10)
			c.damage(t, m)
			if diff := cmp.Diff(c.want, kinds(check(t, m))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestABootIDPrintsAndParses(t *testing.T) {
	want := ledger.BootID{1, 2, 3, 255}
	got, err := ledger.ParseBootID(want.String())
	if err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "12", "zz020000000000000000000000000000"} {
		if _, err := ledger.ParseBootID(bad); err == nil {
			t.Errorf("parsed %q", bad)
		}
	}
}
