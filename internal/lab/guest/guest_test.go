package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/lab/guest/ledger"
)

func testConfig() Config {
	return Config{IP: netip.MustParsePrefix("10.10.1.100/24"), Gateway: netip.MustParseAddr("10.10.1.1"), Hostname: "probe1"}
}

// newGuest makes a guest whose ledger is a file of 1 MiB; the ledger is open.
func newGuest(t *testing.T) *Guest {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "ledger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	const size = 1 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	boot := ledger.BootID{1}
	service := NewLedgerService(f, size, boot, make([]byte, 64<<10))
	if err := service.Open(time.Now, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	return New(testConfig(), boot, time.Now(), service, 64, Faults{})
}

func TestAConfigurationSurvivesItsBlock(t *testing.T) {
	for _, want := range []Config{testConfig(), {IP: netip.MustParsePrefix("192.168.0.7/16"), Hostname: "a", Quiet: true}} {
		block, err := EncodeConfig(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeConfig(block)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" || err != nil || len(block) != ConfigSize {
			t.Errorf("%d bytes, %v (-want +got):\n%s", len(block), err, diff)
		}
	}
}

func TestABlockWithoutAConfigurationIsRefused(t *testing.T) {
	good, err := EncodeConfig(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	torn := bytes.Clone(good)
	torn[configHeader+3] ^= 1
	long := bytes.Clone(good)
	binary.LittleEndian.PutUint32(long[len(configMagic):], 1<<30)
	for name, block := range map[string][]byte{"empty": make([]byte, ConfigSize), "short": good[:10], "torn": torn, "long": long} {
		if _, err := DecodeConfig(block); err == nil {
			t.Errorf("%s block: no error", name)
		}
	}
}

func TestAConfigurationThatCannotWorkIsRefused(t *testing.T) {
	for text, change := range map[string]func(*Config){
		"address":   func(c *Config) { c.IP = netip.Prefix{} },
		"IPv4":      func(c *Config) { c.IP = netip.MustParsePrefix("fd00::1/64") },
		"gateway":   func(c *Config) { c.Gateway = netip.MustParseAddr("10.99.0.1") },
		"host name": func(c *Config) { c.Hostname = "Probe One" },
	} {
		c := testConfig()
		change(&c)
		if _, err := EncodeConfig(c); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("want an error about %s, got %v", text, err)
		}
	}
}

func TestAFileIsTheSameHoweverItIsRead(t *testing.T) {
	f := File{MiB: 1, Seed: 5}
	whole, err := io.ReadAll(f.Reader())
	if err != nil || int64(len(whole)) != f.Size() {
		t.Fatalf("%d bytes, %v", len(whole), err)
	}
	pieces, err := io.ReadAll(io.MultiReader(io.LimitReader(f.Reader(), 0), bufio.NewReaderSize(f.Reader(), 17)))
	if err != nil || !bytes.Equal(whole, pieces) {
		t.Errorf("read in pieces it differs, %v", err)
	}
	if f.Hash() == (File{MiB: 1, Seed: 6}).Hash() {
		t.Error("another seed gives the same file")
	}
	if bytes.Equal(whole[:blockSize], whole[blockSize:2*blockSize]) {
		t.Error("two blocks are the same")
	}
}

func TestTheStreamKeepsItsRateAndCatchesUpAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(testConfig(), ledger.BootID{}, time.Now(), nil, 1, Faults{})
		ctx, cancel := context.WithCancel(t.Context())
		w := &pausingWriter{header: http.Header{}, pauseAt: 10, pause: time.Second}
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/stream?rate=50000", nil)
		go func() { g.Handler().ServeHTTP(w, r) }()
		time.Sleep(3*time.Second - time.Millisecond)
		cancel()
		synctest.Wait()
		if len(w.sizes) != 150 {
			t.Errorf("%d chunks in 3 s with a pause of 1 s, want 150", len(w.sizes))
		}
		for n, size := range w.sizes {
			if size != 1000 {
				t.Fatalf("chunk %d has %d bytes, want 1000", n, size)
			}
		}
	})
}

// pausingWriter blocks once, as a connection does while the other side is frozen.
type pausingWriter struct {
	header  http.Header
	sizes   []int
	pauseAt int
	pause   time.Duration
}

func (w *pausingWriter) Header() http.Header { return w.header }
func (w *pausingWriter) WriteHeader(int)     {}
func (w *pausingWriter) Flush()              {}
func (w *pausingWriter) Write(p []byte) (int, error) {
	if len(w.sizes) == w.pauseAt {
		time.Sleep(w.pause)
	}
	w.sizes = append(w.sizes, len(p))
	return len(p), nil
}

func TestAChunkHeaderComesBackAndAChangedOneIsRefused(t *testing.T) {
	head := make([]byte, ChunkHeader)
	want := Chunk{Number: 3, Time: 4, Length: 5}
	want.Encode(head)
	if got, err := DecodeChunk(head); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	head[9] ^= 1
	if _, err := DecodeChunk(head); err == nil {
		t.Error("a changed header was accepted")
	}
}

func TestRequestsThatMakeNoSenseAreAnsweredWithWhatIsAllowed(t *testing.T) {
	h := newGuest(t).Handler()
	for path, want := range map[string]string{
		"/file/0":                         "from 1 to",
		"/file/x":                         "from 1 to",
		"/file/1?rate=1":                  "from 65536 to",
		"/hash/none":                      "from 1 to",
		"/stream?rate=1":                  "from 3200 to",
		"/dirty?mib_per_s=-1":             "from 0 to",
		"/dirty?mib_per_s=1&mib=1000":     "from 1 to 64",
		"/dirty?mib_per_s=quick&mib=1000": "from 0 to",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %q, want 400 and %q", path, w.Code, w.Body, want)
		}
	}
}

func TestDirtyingKeepsItsRateAndDoesNotCatchUpAfterAPause(t *testing.T) {
	d := NewDirtier()
	d.Set(40, 8)
	written := func() (n int) {
		for i := 0; i < len(d.mem); i += pageSize {
			n += int(d.mem[i])
		}
		return n
	}
	for range 10 {
		d.step(10 * time.Millisecond)
	}
	if got, want := written(), 4<<20/pageSize; got < want-1 || got > want { // a part of a page is owed
		t.Errorf("%d pages in 100 ms at 40 MiB/s, want %d", got, want)
	}
	before := written()
	d.step(time.Hour)
	if got, want := written()-before, 8<<20/pageSize; got != want {
		t.Errorf("%d pages after a pause, want the area once: %d", got, want)
	}
	d.Set(0, 8)
	if rate, size := d.Rate(); rate != 0 || size != 0 {
		t.Errorf("after rate 0: %d MiB/s in %d MiB", rate, size)
	}
}

// serveAll runs all services on loopback until the test ends.
func serveAll(t *testing.T, g *Guest) Listeners {
	t.Helper()
	var lc net.ListenConfig
	var l Listeners
	var err [3]error
	l.Echo, err[0] = lc.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	l.HTTP, err[1] = lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	l.Ledger, err[2] = lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	for _, err := range err {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("services: %v", err)
		}
	})
	return l
}

func TestTheLedgerSpeaksItsProtocol(t *testing.T) {
	l := serveAll(t, newGuest(t))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Ledger.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func(line string) string {
		t.Helper()
		fmt.Fprintln(conn, line)
		answer, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return strings.TrimSpace(answer)
	}
	for _, c := range []struct{ ask, want string }{
		{"APPEND aGVsbG8=", "OK 1 "},
		{"APPEND d29ybGQ=", "OK 2 "},
		{"APPEND !", "ERR payload"},
		{"APPEND " + strings.Repeat("aaaa", 500), "ERR "},
		{"READ 0 5", "ERR READ"},
		{"READ 1 99999999", "ERR READ"},
		{"HELLO", "ERR unknown request"},
		{"STATUS", `{"open":true,"last":2,`},
		{"CHECK", `{"records":2,"last":2,`},
	} {
		if got := ask(c.ask); !strings.HasPrefix(got, c.want) {
			t.Errorf("%.20s: got %q, want %q", c.ask, got, c.want)
		}
	}
	if got := ask("READ 1 3"); got != "DATA 1 3" {
		t.Fatalf("READ 1 3: %q", got)
	}
	slots := make([]byte, 3*ledger.SlotSize)
	if _, err := io.ReadFull(in, slots); err != nil {
		t.Fatal(err)
	}
	r, _, err := ledger.Decode(slots[ledger.SlotSize : 2*ledger.SlotSize])
	if err != nil || string(r.Payload) != "world" || r.Number != 2 {
		t.Errorf("record 2: %+v, %v", r, err)
	}
	if end, err := in.ReadString('\n'); end != "END\n" || err != nil {
		t.Errorf("end of READ: %q, %v", end, err)
	}
}

func TestTheStatisticsTellTheLedgersState(t *testing.T) {
	g := newGuest(t)
	l := serveAll(t, g)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.HTTP.Addr().String()+"/dirty?mib_per_s=3&mib=2", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got Stats
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := Stats{
		Hostname: "probe1", BootID: ledger.BootID{1}.String(), DirtyMiBPS: 3, DirtyMiB: 2,
		Ledger: LedgerStatus{Open: true, Slots: 2048, Boot: ledger.BootID{1}.String()},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Stats{}, "UptimeMS", "GuestUnixNS")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestThePromptAnswersItsCommands(t *testing.T) {
	var off bool
	tty := &terminal{in: strings.NewReader("help\n\nstatus\nreboot\npoweroff\nnever\n")}
	if err := newGuest(t).Console(t.Context(), tty, func() { off = true }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"switch off", "probe1 10.10.1.100", `ledger {"open":true`, `unknown command "reboot": try help`} {
		if !strings.Contains(tty.out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, tty.out.String())
		}
	}
	if !off || strings.Contains(tty.out.String(), "never") {
		t.Errorf("power-off %v, then:\n%s", off, tty.out.String())
	}
}

type terminal struct {
	in  io.Reader
	out bytes.Buffer
}

func (t *terminal) Read(p []byte) (int, error)  { return t.in.Read(p) }
func (t *terminal) Write(p []byte) (int, error) { return t.out.Write(p) }

func TestOnlyThePowerButtonsPressSwitchesOff(t *testing.T) {
	event := func(kind, code uint16, value int32) []byte {
		b := make([]byte, inputEventSize)
		binary.NativeEndian.PutUint16(b[16:], kind)
		binary.NativeEndian.PutUint16(b[18:], code)
		binary.NativeEndian.PutUint32(b[20:], uint32(value))
		return b
	}
	for name, c := range map[string]struct {
		event []byte
		want  bool
	}{
		"press":       {event(inputKey, inputPower, 1), true},
		"release":     {event(inputKey, inputPower, 0), false},
		"another key": {event(inputKey, 30, 1), false},
		"no key":      {event(0, 0, 0), false},
	} {
		var off bool
		_ = readButton(bytes.NewReader(c.event), func() { off = true })
		if off != c.want {
			t.Errorf("%s: power-off %v, want %v", name, off, c.want)
		}
	}
}
