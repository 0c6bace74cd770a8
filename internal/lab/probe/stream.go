package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
)

// KindSecond is a Second: what arrived since the line before.
const KindSecond = "second"

// Second is written about once a second, and at the end of each silence that was longer than one.
type Second struct {
	Kind    string        `json:"kind"`
	At      time.Duration `json:"at_ns"` // when the second ended
	Bytes   int64         `json:"bytes"` // received in it
	StallMS float64       `json:"longest_stall_ms"`
	StallAt time.Duration `json:"stall_begin_ns"`
}

// silenceLimit is how long a connection may bring nothing before it counts as
// broken: longer than a failover takes, so that one that would have gone on is seen to go on.
const silenceLimit = 60 * time.Second

// meter measures the flow of bytes of one connection.
type meter struct {
	rec            *recorder
	last           time.Duration // of the last arrival
	second         Second
	from           time.Duration // begin of the current second
	bytes          int64
	longest, begin time.Duration
}

func newMeter(rec *recorder) *meter {
	now := Now()
	return &meter{rec: rec, last: now, from: now}
}

// arrived notes n bytes that arrived now. A stall is the time between two arrivals.
func (m *meter) arrived(n int) {
	now := Now()
	stall := now - m.last
	if ms := milliseconds(stall); ms > m.second.StallMS {
		m.second.StallMS, m.second.StallAt = ms, m.last
	}
	if stall > m.longest {
		m.longest, m.begin = stall, m.last
	}
	m.last = now
	m.bytes += int64(n)
	m.second.Bytes += int64(n)
	if now-m.from >= time.Second {
		m.flush(now)
	}
}

func (m *meter) flush(now time.Duration) {
	m.second.Kind, m.second.At = KindSecond, now
	m.rec.line(m.second)
	m.second, m.from = Second{}, now
}

// finish counts a silence at the end.
func (m *meter) finish() {
	m.arrived(0)
	m.flush(Now())
}

// silent ends the request when nothing arrived for silenceLimit; the returned functions are called at each arrival and at the end.
func silent(cancel context.CancelCauseFunc) (alive func(), stop func() bool) {
	t := time.AfterFunc(silenceLimit, func() { cancel(fmt.Errorf("nothing arrived for %s", silenceLimit)) })
	return func() { t.Reset(silenceLimit) }, t.Stop
}

// get asks for a path of the guest on a connection of its own.
func get(ctx context.Context, target, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("ask for %s: %s: %s", path, resp.Status, bytes.TrimSpace(text))
	}
	return resp.Body, nil
}

// StreamConfig says whose stream to read.
type StreamConfig struct {
	Target string // host or host:port
	Rate   int    // bytes a second; 0 is 256 KiB/s
}

// StreamSummary is the last line.
type StreamSummary struct {
	Kind      string        `json:"kind"`
	Probe     string        `json:"probe"`
	Bytes     int64         `json:"bytes"`
	Chunks    uint64        `json:"chunks"`
	LongestMS float64       `json:"longest_stall_ms"`
	Begin     time.Duration `json:"stall_begin_ns"`
	Wrong     uint64        `json:"wrong_chunks"`     // out of order or with other content
	Broken    bool          `json:"broken"`           // the connection ended before the probe was stopped
	Reason    string        `json:"reason,omitempty"` // why
}

// Stream reads the guest's constant-bit-rate stream over one connection.
type Stream struct {
	cfg StreamConfig
	rec *recorder
}

// NewStream prepares a probe that writes its lines to out, which may be nil.
func NewStream(cfg StreamConfig, out io.Writer) *Stream {
	cfg.Target = address(cfg.Target, guest.HTTPPort)
	if cfg.Rate == 0 {
		cfg.Rate = 256 << 10
	}
	return &Stream{cfg: cfg, rec: newRecorder(out, "stream", cfg.Target)}
}

// Run reads until ctx is done or the connection broke, which the summary says.
// It never connects again. An error means that there was nothing to measure.
func (s *Stream) Run(ctx context.Context) (StreamSummary, error) {
	conn, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := get(conn, s.cfg.Target, fmt.Sprintf("/stream?rate=%d", s.cfg.Rate))
	if err != nil {
		return StreamSummary{}, err
	}
	defer body.Close()
	alive, stop := silent(cancel)
	defer stop()
	sum := StreamSummary{Kind: KindSummary, Probe: "stream"}
	m := newMeter(s.rec)
	err = readChunks(io.TeeReader(body, arrivals(func(n int) { alive(); m.arrived(n) })), &sum)
	if ctx.Err() == nil {
		sum.Broken, sum.Reason = true, reason(conn, err)
	}
	m.finish()
	sum.Bytes, sum.LongestMS, sum.Begin = m.bytes, milliseconds(m.longest), m.begin
	s.rec.line(sum)
	return sum, s.rec.Err()
}

// reason prefers why the request was cancelled to how reading noticed.
func reason(ctx context.Context, err error) string {
	if cause := context.Cause(ctx); cause != nil {
		return cause.Error()
	}
	return err.Error()
}

// arrivals is a writer that only counts.
type arrivals func(n int)

func (f arrivals) Write(p []byte) (int, error) {
	f(len(p))
	return len(p), nil
}

// readChunks checks the stream until it ends. A chunk that is wrong is counted;
// one whose head is no head ends the reading, since nothing after it could be trusted.
func readChunks(r io.Reader, sum *StreamSummary) error {
	head, body := make([]byte, guest.ChunkHeader), []byte(nil)
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(r, head); err != nil {
			return err
		}
		c, err := guest.DecodeChunk(head)
		if err != nil {
			sum.Wrong++
			return err
		}
		if uint32(len(body)) != c.Length {
			body = make([]byte, c.Length)
		}
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		sum.Chunks++
		if c.Number != n || bytes.Count(body, []byte{byte(n)}) != len(body) {
			sum.Wrong++
			n = c.Number
		}
	}
}

// DownloadConfig says which file to fetch.
type DownloadConfig struct {
	Target string // host or host:port
	File   guest.File
	Rate   int // bytes a second that the guest may send; 0 is as fast as it can
}

// DownloadSummary is the last line.
type DownloadSummary struct {
	Kind      string        `json:"kind"`
	Probe     string        `json:"probe"`
	Bytes     int64         `json:"bytes"`
	Size      int64         `json:"size"`
	SHA256    string        `json:"sha256"`   // of what arrived
	Expected  string        `json:"expected"` // of the whole file
	Complete  bool          `json:"complete"` // all of it arrived
	OK        bool          `json:"ok"`       // complete and the hash is right
	WrongAt   int64         `json:"wrong_at"` // offset of the first block that is wrong, -1 if none is
	LongestMS float64       `json:"longest_stall_ms"`
	Begin     time.Duration `json:"stall_begin_ns"`
	TotalMS   float64       `json:"total_ms"`
	Broken    bool          `json:"broken"`
	Reason    string        `json:"reason,omitempty"`
}

// Download fetches one large file over one connection and checks its hash.
type Download struct {
	cfg DownloadConfig
	rec *recorder
}

// NewDownload prepares a probe that writes its lines to out, which may be nil.
func NewDownload(cfg DownloadConfig, out io.Writer) *Download {
	cfg.Target = address(cfg.Target, guest.HTTPPort)
	return &Download{cfg: cfg, rec: newRecorder(out, "download", cfg.Target)}
}

// Run returns when the file is complete, the connection broke or ctx is done;
// what arrived until then was checked in any case. It never connects again.
func (d *Download) Run(ctx context.Context) (DownloadSummary, error) {
	conn, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := d.cfg.File
	path := fmt.Sprintf("/file/%d?seed=%d", f.MiB, f.Seed)
	if d.cfg.Rate > 0 {
		path += fmt.Sprintf("&rate=%d", d.cfg.Rate)
	}
	body, err := get(conn, d.cfg.Target, path)
	if err != nil {
		return DownloadSummary{}, err
	}
	defer body.Close()
	alive, stop := silent(cancel)
	defer stop()
	start, m := Now(), newMeter(d.rec)
	c := &comparer{want: f.Reader(), hash: sha256.New(), wrongAt: -1}
	_, err = io.Copy(c, io.TeeReader(body, arrivals(func(n int) { alive(); m.arrived(n) })))
	if err == nil && c.n < f.Size() {
		err = io.ErrUnexpectedEOF
	}
	sum := DownloadSummary{
		Kind: KindSummary, Probe: "download", Bytes: c.n, Size: f.Size(), SHA256: hex.EncodeToString(c.hash.Sum(nil)),
		Expected: f.Hash(), Complete: c.n == f.Size(), WrongAt: c.wrongAt, TotalMS: milliseconds(Now() - start),
	}
	sum.OK = sum.Complete && sum.SHA256 == sum.Expected
	if err != nil && ctx.Err() == nil {
		sum.Broken, sum.Reason = true, reason(conn, err)
	}
	if !sum.Complete {
		m.finish()
	}
	sum.LongestMS, sum.Begin = milliseconds(m.longest), m.begin
	d.rec.line(sum)
	return sum, d.rec.Err()
}

// comparer checks what is written to it against what should come.
type comparer struct {
	want    io.Reader
	hash    hash.Hash
	buf     []byte
	n       int64
	wrongAt int64
}

func (c *comparer) Write(p []byte) (int, error) {
	if len(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	want := c.buf[:len(p)]
	if _, err := io.ReadFull(c.want, want); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("compute file: %w", err)
	}
	if c.wrongAt < 0 && !bytes.Equal(p, want) {
		c.wrongAt = c.n
	}
	c.n += int64(len(p))
	return c.hash.Write(p)
}
