package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
)

// Kinds of an echo probe's lines.
const (
	KindEcho = "echo" // EchoLine with an answer, written when it arrives
	KindLost = "lost" // EchoLine without one, written after Timeout; a late answer still makes a KindEcho line
)

// EchoLine is one sample in the file.
type EchoLine struct {
	Kind string `json:"kind"`
	Sample
}

// EchoConfig says whom to ask and how often.
type EchoConfig struct {
	Target   string        // host or host:port
	Interval time.Duration // 0 is 10 ms
	Timeout  time.Duration // after which an echo is written down as lost; 0 is 3 s
}

// EchoSummary is the last line.
type EchoSummary struct {
	Kind     string    `json:"kind"`
	Probe    string    `json:"probe"`
	Gaps     GapReport `json:"gaps"` // over the whole series
	RTTP50MS float64   `json:"rtt_p50_ms"`
	RTTP99MS float64   `json:"rtt_p99_ms"`
}

// Echo sends a numbered UDP datagram at a fixed interval and notes when it
// comes back. It goes on whatever happens to the other side. Run it once.
type Echo struct {
	cfg EchoConfig
	rec *recorder

	mu     sync.Mutex
	series []Sample // Seq is the index
	lost   int      // series[:lost] were answered or written down as lost
}

// NewEcho prepares a probe that writes its lines to out, which may be nil.
func NewEcho(cfg EchoConfig, out io.Writer) *Echo {
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Millisecond
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	cfg.Target = address(cfg.Target, guest.EchoPort)
	return &Echo{cfg: cfg, rec: newRecorder(out, "echo", cfg.Target)}
}

// Series returns a copy of what was seen so far. Safe while the probe runs.
func (e *Echo) Series() []Sample {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.series)
}

// Run probes until ctx is done. An unreachable target is a result, not an error.
func (e *Echo) Run(ctx context.Context) (EchoSummary, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", e.cfg.Target)
	if err != nil {
		return EchoSummary{}, fmt.Errorf("echo probe to %s: %w", e.cfg.Target, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { e.receive(ctx, conn) })
	e.send(ctx, conn)
	_ = conn.Close()
	wg.Wait()
	e.noteLost(Now() + e.cfg.Timeout)
	sum := e.summary()
	e.rec.line(sum)
	return sum, e.rec.Err()
}

func (e *Echo) send(ctx context.Context, conn net.Conn) {
	tick := time.NewTicker(e.cfg.Interval)
	defer tick.Stop()
	buf := make([]byte, 16)
	for ctx.Err() == nil {
		e.mu.Lock()
		seq := uint64(len(e.series))
		now := Now()
		e.series = append(e.series, Sample{Seq: seq, Sent: now})
		e.mu.Unlock()
		binary.BigEndian.PutUint64(buf, seq)
		binary.BigEndian.PutUint64(buf[8:], uint64(now))
		_, _ = conn.Write(buf) // no route, nobody there: the missing answer says it
		e.noteLost(now)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (e *Echo) receive(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 64)
	for ctx.Err() == nil {
		n, err := conn.Read(buf)
		now := Now()
		if err != nil || n != 16 {
			continue // an ICMP error that belongs to an earlier datagram
		}
		e.answer(binary.BigEndian.Uint64(buf), now)
	}
}

func (e *Echo) answer(seq uint64, now time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if seq >= uint64(len(e.series)) || e.series[seq].Recv != 0 {
		return
	}
	e.series[seq].Recv = now
	e.rec.line(EchoLine{Kind: KindEcho, Sample: e.series[seq]})
}

// noteLost writes down the echoes that have waited longer than Timeout.
func (e *Echo) noteLost(now time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ; e.lost < len(e.series) && now-e.series[e.lost].Sent >= e.cfg.Timeout; e.lost++ {
		if s := e.series[e.lost]; s.Recv == 0 {
			e.rec.line(EchoLine{Kind: KindLost, Sample: s})
		}
	}
}

func (e *Echo) summary() EchoSummary {
	series := e.Series()
	return EchoSummary{
		Kind: KindSummary, Probe: "echo", Gaps: Gaps(series, 0, Now()),
		RTTP50MS: milliseconds(Quantile(series, 0.5)), RTTP99MS: milliseconds(Quantile(series, 0.99)),
	}
}

// ReadEcho reads the file of an echo probe, also one that is still written or
// was cut off in the middle of a line. Samples come in the order of Seq.
func ReadEcho(r io.Reader) ([]Sample, error) {
	bySeq := map[uint64]Sample{}
	in := bufio.NewReader(r)
	for {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read echo file: %w", err)
		}
		var line EchoLine
		if err := json.Unmarshal(text, &line); err != nil {
			return nil, fmt.Errorf("read echo file: %w", err)
		}
		if line.Kind == KindEcho || line.Kind == KindLost && bySeq[line.Seq].Recv == 0 {
			bySeq[line.Seq] = line.Sample
		}
	}
	series := make([]Sample, 0, len(bySeq))
	for _, s := range bySeq {
		series = append(series, s)
	}
	slices.SortFunc(series, func(a, b Sample) int { return int(int64(a.Seq) - int64(b.Seq)) })
	return series, nil
}
