package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/lab/guest/ledger"
)

const ms = time.Millisecond

// series makes samples sent every 10 ms from 1 s on; each answer takes 1 ms, those of missing never come.
func series(n int, missing ...int) []Sample {
	out := make([]Sample, n)
	for i := range out {
		sent := time.Second + time.Duration(i)*10*ms
		out[i] = Sample{Seq: uint64(i), Sent: sent, Recv: sent + ms}
	}
	for _, i := range missing {
		out[i].Recv = 0
	}
	return out
}

func TestAGapIsTheTimeBetweenTwoAnswers(t *testing.T) {
	late := series(10)
	late[5].Recv += 35 * ms // overtaken by three others
	for name, c := range map[string]struct {
		series   []Sample
		from, to time.Duration
		want     GapReport
	}{
		"no series":        {nil, 0, time.Hour, GapReport{}},
		"no answers":       {series(3, 0, 1, 2), 0, time.Hour, GapReport{Sent: 3, Lost: 3}},
		"nothing lost":     {series(10), 0, time.Hour, GapReport{Longest: 10 * ms, Begin: 1001 * ms, Sent: 10}},
		"one lost":         {series(10, 4), 0, time.Hour, GapReport{Longest: 20 * ms, Begin: 1031 * ms, Sent: 10, Lost: 1}},
		"three lost":       {series(10, 4, 5, 6), 0, time.Hour, GapReport{Longest: 40 * ms, Begin: 1031 * ms, Sent: 10, Lost: 3}},
		"window before":    {series(10, 6, 7), 0, 1045 * ms, GapReport{Longest: 10 * ms, Begin: 1001 * ms, Sent: 5}},
		"window cuts gap":  {series(20, 4, 5, 6), 1050 * ms, 1055 * ms, GapReport{Longest: 40 * ms, Begin: 1031 * ms, Sent: 1, Lost: 1}},
		"window after":     {series(20, 4, 5, 6), 1080 * ms, 1100 * ms, GapReport{Longest: 10 * ms, Begin: 1071 * ms, Sent: 3}},
		"never came back":  {series(10, 7, 8, 9), 0, time.Hour, GapReport{Longest: 29 * ms, Begin: 1061 * ms, Open: true, Sent: 10, Lost: 3}},
		"begins with loss": {series(10, 0, 1, 2), 0, time.Hour, GapReport{Longest: 10 * ms, Begin: 1031 * ms, Sent: 10, Lost: 3}},
		"late answer":      {late, 0, time.Hour, GapReport{Longest: 20 * ms, Begin: 1041 * ms, Sent: 10}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Gaps(c.series, c.from, c.to)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheFirstAnswerAfterAMomentIsToAnEchoSentAfterIt(t *testing.T) {
	s := series(10, 3, 4, 5)
	s[2].Recv = 1055 * ms // sent before, answered after
	if at, ok := FirstAnswer(s, 1025*ms); !ok || at != 1061*ms {
		t.Errorf("got %s, %v, want 1.061s", at, ok)
	}
	if _, ok := FirstAnswer(s, time.Hour); ok {
		t.Error("an answer after the end")
	}
}

func TestQuantilesCountAnswersAlone(t *testing.T) {
	s := series(4, 3)
	s[1].Recv += 9 * ms
	if got := Quantile(s, 1); got != 10*ms {
		t.Errorf("longest round trip %s, want 10ms", got)
	}
	if got := Quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %s", got)
	}
}

func TestAnEchoProbesFileTellsTheSameAsItsSeries(t *testing.T) {
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { // answers two of three
		buf := make([]byte, 64)
		for i := 0; ; i++ {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if i%3 != 2 {
				_, _ = conn.WriteTo(buf[:n], from)
			}
		}
	}()
	var out bytes.Buffer
	e := NewEcho(EchoConfig{Target: conn.LocalAddr().String(), Interval: ms, Timeout: 5 * ms}, &out)
	ctx, cancel := context.WithTimeout(t.Context(), 200*ms)
	defer cancel()
	sum, err := e.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadEcho(&out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e.Series(), got); diff != "" {
		t.Errorf("(-series +file):\n%s", diff)
	}
	if sum.Gaps.Sent < 30 || sum.Gaps.Lost < sum.Gaps.Sent/4 {
		t.Errorf("summary %+v", sum)
	}
}

func TestAnEchoFileThatWasCutOffIsReadAsFarAsItGoes(t *testing.T) {
	text := `{"kind":"start","probe":"echo"}
{"kind":"lost","seq":1,"sent_ns":20}
{"kind":"echo","seq":0,"sent_ns":10,"recv_ns":11}
{"kind":"echo","seq":1,"sent_ns":20,"recv_ns":90}
{"kind":"echo","seq":2,"se`
	got, err := ReadEcho(strings.NewReader(text))
	want := []Sample{{Seq: 0, Sent: 10, Recv: 11}, {Seq: 1, Sent: 20, Recv: 90}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := ReadEcho(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was read")
	}
}

// serveHTTP serves h on loopback.
func serveHTTP(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return ln.Addr().String()
}

func chunk(n uint64, body string) []byte {
	b := make([]byte, guest.ChunkHeader, guest.ChunkHeader+len(body))
	guest.Chunk{Number: n, Length: uint32(len(body))}.Encode(b)
	return append(b, body...)
}

func TestAStreamCountsChunksThatAreWrong(t *testing.T) {
	for name, c := range map[string]struct {
		stream []byte
		want   StreamSummary
	}{
		"good":     {bytes.Join([][]byte{chunk(0, "\x00\x00"), chunk(1, "\x01")}, nil), StreamSummary{Chunks: 2}},
		"missing":  {bytes.Join([][]byte{chunk(0, "\x00"), chunk(2, "\x02"), chunk(3, "\x03")}, nil), StreamSummary{Chunks: 3, Wrong: 1}},
		"content":  {bytes.Join([][]byte{chunk(0, "\x00\x01"), chunk(1, "\x01")}, nil), StreamSummary{Chunks: 2, Wrong: 1}},
		"no chunk": {bytes.Repeat([]byte("x"), 100), StreamSummary{Wrong: 1}},
	} {
		var got StreamSummary
		err := readChunks(bytes.NewReader(c.stream), &got)
		if diff := cmp.Diff(c.want, got); diff != "" || err == nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func TestAStreamThatEndsIsReportedAsBrokenAndNotReplaced(t *testing.T) {
	requests := 0
	target := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		requests++
		_, _ = w.Write(chunk(0, "\x00\x00"))
	})
	sum, err := NewStream(StreamConfig{Target: target}, nil).Run(t.Context())
	if err != nil || !sum.Broken || sum.Chunks != 1 || requests != 1 {
		t.Errorf("%d requests, %+v, %v", requests, sum, err)
	}
}

func TestADownloadFindsAChangedByteAndAMissingEnd(t *testing.T) {
	file := guest.File{MiB: 1, Seed: 3}
	content, err := io.ReadAll(file.Reader())
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(content)
	changed[700000] ^= 1
	for name, c := range map[string]struct {
		body []byte
		ok   bool
		chk  func(DownloadSummary) bool
	}{
		"right":   {content, true, func(s DownloadSummary) bool { return s.Complete && !s.Broken && s.WrongAt == -1 }},
		"changed": {changed, false, func(s DownloadSummary) bool { return s.Complete && s.WrongAt >= 0 && s.WrongAt <= 700000 }},
		"cut off": {content[:500000], false, func(s DownloadSummary) bool { return s.Broken && s.Bytes == 500000 && s.WrongAt == -1 }},
	} {
		target := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(c.body) })
		var out bytes.Buffer
		sum, err := NewDownload(DownloadConfig{Target: target, File: file}, &out).Run(t.Context())
		if err != nil || sum.OK != c.ok || !c.chk(sum) {
			t.Errorf("%s: %+v, %v", name, sum, err)
		}
		if last := lastLine(t, out.Bytes()); last["kind"] != KindSummary {
			t.Errorf("%s: last line %v", name, last)
		}
	}
}

func lastLine(t *testing.T, text []byte) map[string]any {
	t.Helper()
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var m map[string]any
	if err := json.Unmarshal(lines[len(lines)-1], &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAFileThatDoesNotExistIsAnError(t *testing.T) {
	target := serveHTTP(t, http.NotFound)
	if _, err := NewDownload(DownloadConfig{Target: target, File: guest.File{MiB: 1}}, nil).Run(t.Context()); err == nil {
		t.Error("no error")
	}
}

// ledgerGuest serves a ledger in a file on loopback and returns both.
func ledgerGuest(t *testing.T, wrap func(net.Listener) net.Listener) (target string, disk *os.File) {
	t.Helper()
	disk, err := os.CreateTemp(t.TempDir(), "ledger")
	if err != nil {
		t.Fatal(err)
	}
	const size = 8 << 20
	if err := disk.Truncate(size); err != nil {
		t.Fatal(err)
	}
	service := guest.NewLedgerService(disk, size, ledger.BootID{1}, make([]byte, 64<<10))
	if err := service.Open(time.Now, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- service.Serve(ctx, wrap(ln)) }()
	t.Cleanup(func() { cancel(); <-done; _ = disk.Close() })
	return ln.Addr().String(), disk
}

// flaky closes each connection after it wrote limit bytes.
type flaky struct {
	net.Listener
	limit int
}

func (f flaky) Accept() (net.Conn, error) {
	conn, err := f.Listener.Accept()
	return &flakyConn{Conn: conn, left: f.limit}, err
}

type flakyConn struct {
	net.Conn
	left int
}

var errFlaky = errors.New("cable pulled")

func (c *flakyConn) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		_ = c.Conn.Close()
		return 0, errFlaky
	}
	return c.Conn.Write(p)
}

func whole(ln net.Listener) net.Listener { return ln }

// runLedger runs a ledger probe until it has n acknowledgements and returns its history.
func runLedger(t *testing.T, target string, n int) (History, LedgerSummary) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out := &stopper{n: n, stop: cancel}
	sum, err := NewLedger(LedgerConfig{Target: target, Interval: ms / 10, Run: 77}, out).Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var h History
	if err := h.ReadHistory(&out.buf); err != nil {
		t.Fatal(err)
	}
	return h, sum
}

// stopper keeps what is written and calls stop after n acknowledgements.
type stopper struct {
	buf  bytes.Buffer
	n    int
	stop func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"kind":"ack"`)) {
		if s.n--; s.n == 0 {
			s.stop()
		}
	}
	return s.buf.Write(p)
}

func TestALedgerWithoutDamageIsVerified(t *testing.T) {
	target, _ := ledgerGuest(t, whole)
	h, sum := runLedger(t, target, 50)
	v, err := Verify(t.Context(), target, h)
	if err != nil || !v.OK() || v.Acknowledged != int(sum.Acknowledged) || v.Unacknowledged != int(sum.Unknown) {
		t.Errorf("%+v, %+v, %v", sum, v, err)
	}
}

func TestARecordWhoseAnswerWasLostIsNeitherLostNorWrong(t *testing.T) {
	// An answer has about 48 bytes: each connection carries nine, and the tenth record is on the disk unacknowledged.
	target, disk := ledgerGuest(t, func(ln net.Listener) net.Listener { return flaky{ln, 450} })
	h, sum := runLedger(t, target, 30)
	if sum.Connections < 3 || sum.Unknown < 2 {
		t.Fatalf("the connection did not break: %+v", sum)
	}
	v := verifyDisk(t, disk, h)
	if !v.OK() || v.Unacknowledged < 2 || v.Unacknowledged > len(h.Unknown) {
		t.Errorf("verdict %+v", v)
	}
}

// verifyDisk does what Verify does without a connection.
func verifyDisk(t *testing.T, disk io.ReaderAt, h History) Verdict {
	t.Helper()
	c := newVerifier(h)
	const end = 1000
	err := ledger.ReadSlots(disk, 1, end, make([]byte, 64<<10), func(n uint64, slot []byte) bool {
		c.slot(n, slot)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.verdict(end)
}

func TestEachDamageToAnAcknowledgedRecordIsFound(t *testing.T) {
	const at = 20
	offset := int64(at-1) * ledger.SlotSize
	read := func(disk *os.File) []byte {
		slot := make([]byte, ledger.SlotSize)
		if _, err := disk.ReadAt(slot, offset); err != nil {
			panic(err)
		}
		return slot
	}
	other := func(disk *os.File, change func(*ledger.Record)) []byte {
		slot := read(disk)
		r, _, err := ledger.Decode(slot)
		if err != nil {
			panic(err)
		}
		change(&r)
		if _, err := r.Encode(slot); err != nil {
			panic(err)
		}
		return slot
	}
	for name, c := range map[string]struct {
		slot func(disk *os.File) []byte
		want Verdict
		text string
	}{
		"the slot is empty": {
			func(*os.File) []byte { return make([]byte, ledger.SlotSize) }, Verdict{Lost: 1}, "empty",
		},
		"a bit changed": {
			func(d *os.File) []byte { s := read(d); s[60] ^= 4; return s }, Verdict{Wrong: 1}, "no valid record",
		},
		"another boot wrote over it": {
			func(d *os.File) []byte {
				return other(d, func(r *ledger.Record) { r.Boot, r.Payload = ledger.BootID{2}, []byte("other") })
			},
			Verdict{Wrong: 1, Foreign: 1},
			"another record",
		},
		"the same record was written again": {
			func(d *os.File) []byte { return other(d, func(r *ledger.Record) { r.Time++ }) }, Verdict{Wrong: 1}, "checksum",
		},
		"a later record stands there": {
			func(d *os.File) []byte {
				return other(d, func(r *ledger.Record) { r.Payload = payload(77, at+1) })
			},
			Verdict{Wrong: 1, Twice: 1},
			"another record",
		},
	} {
		t.Run(name, func(t *testing.T) {
			target, disk := ledgerGuest(t, whole)
			h, _ := runLedger(t, target, 50)
			if _, err := disk.WriteAt(c.slot(disk), offset); err != nil {
				t.Fatal(err)
			}
			v, err := Verify(t.Context(), target, h)
			if err != nil || v.OK() {
				t.Fatalf("verdict %+v, %v", v, err)
			}
			got := Verdict{Lost: v.Lost, Wrong: v.Wrong, Twice: v.Twice, Foreign: v.Foreign}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(v.Faults) != 1 || v.Faults[0].Number != at || !strings.Contains(v.Faults[0].Text, c.text) {
				t.Errorf("faults %+v, want one about record %d: %s", v.Faults, at, c.text)
			}
			if v.Chain.OK() {
				t.Error("the chain alone does not show it")
			}
		})
	}
}

func TestAnAcknowledgedEndThatIsMissingIsLost(t *testing.T) {
	target, disk := ledgerGuest(t, whole)
	h, _ := runLedger(t, target, 50)
	if _, err := disk.WriteAt(make([]byte, 10*ledger.SlotSize), 40*ledger.SlotSize); err != nil {
		t.Fatal(err)
	}
	v, err := Verify(t.Context(), target, h)
	if err != nil || v.Lost != 10 || v.Wrong != 0 {
		t.Errorf("verdict %+v, %v; want 10 lost", v, err)
	}
	h.Acks = append(h.Acks, LedgerLine{Kind: KindAck, Run: 77, Seq: 9999, Number: 1 << 40})
	if v, err := Verify(t.Context(), target, h); err != nil || v.Lost != 11 {
		t.Errorf("verdict %+v, %v; want 11 lost", v, err)
	}
}

func TestAHistoryThatWasCutOffIsReadAsFarAsItGoes(t *testing.T) {
	text := fmt.Sprintf("%s\n%s\n%s", `{"kind":"start"}`, `{"kind":"ack","run":1,"seq":2,"number":3}`, `{"kind":"ack","ru`)
	var h History
	if err := h.ReadHistory(strings.NewReader(text)); err != nil || len(h.Acks) != 1 || h.Acks[0].Number != 3 {
		t.Errorf("%+v, %v", h, err)
	}
	if err := h.ReadHistory(strings.NewReader("{\n")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestStopEndsAProbeAndReturnsItsSummary(t *testing.T) {
	r := Start(t.Context(), func(ctx context.Context) (int, error) {
		<-ctx.Done()
		return 7, nil
	})
	for range 2 {
		if n, err := r.Stop(); n != 7 || err != nil {
			t.Errorf("got %d, %v", n, err)
		}
	}
}
