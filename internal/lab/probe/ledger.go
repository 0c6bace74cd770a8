package probe

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/lab/guest/ledger"
)

// Kinds of a ledger probe's lines: its history.
const (
	KindAck        = "ack"        // the guest said that the record is on its disk
	KindUnknown    = "unknown"    // it was sent and no answer came: it may be on the disk or not
	KindConnect    = "connect"    // a connection stands
	KindDisconnect = "disconnect" // it ended, with the reason
)

// payloadSize of the records that the probe sends, in bytes.
const payloadSize = 256

// LedgerLine is one line of the history.
type LedgerLine struct {
	Kind     string        `json:"kind"`
	At       time.Duration `json:"at_ns"`
	Run      uint64        `json:"run,omitempty"`
	Seq      uint64        `json:"seq,omitempty"` // the client's own number, from 1; never sent twice
	Sent     time.Duration `json:"sent_ns,omitempty"`
	Number   uint64        `json:"number,omitempty"` // what the guest answered
	Checksum uint32        `json:"checksum,omitempty"`
	Boot     string        `json:"boot,omitempty"`
	Reason   string        `json:"reason,omitempty"`
}

// LedgerConfig says whose ledger to write and how fast.
type LedgerConfig struct {
	Target   string        // host or host:port
	Interval time.Duration // from one record to the next; 0 is 10 ms
	Timeout  time.Duration // for connecting and for each answer; 0 is 3 s
	Run      uint64        // tells this client's records from others'; 0 chooses one
}

// LedgerSummary is the last line.
type LedgerSummary struct {
	Kind         string        `json:"kind"`
	Probe        string        `json:"probe"`
	Run          uint64        `json:"run"`
	Acknowledged uint64        `json:"acknowledged"`
	Unknown      uint64        `json:"unknown"`
	Connections  int           `json:"connections"`
	LongestMS    float64       `json:"longest_stall_ms"` // between two acknowledgements
	Begin        time.Duration `json:"stall_begin_ns"`
	LastNumber   uint64        `json:"last_number"`
}

// Ledger appends records one after the other, one in flight, and keeps the
// history of what was acknowledged. When the connection breaks it makes a new one and goes
// on with the next record: what was in flight stays unknown and is never sent again.
type Ledger struct {
	cfg LedgerConfig
	rec *recorder
	seq uint64
	sum LedgerSummary
	ack time.Duration // when the last acknowledgement came
}

// NewLedger prepares a probe that writes its history to out, which may be nil.
func NewLedger(cfg LedgerConfig, out io.Writer) *Ledger {
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Millisecond
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	if cfg.Run == 0 {
		cfg.Run = rand.Uint64()
	}
	cfg.Target = address(cfg.Target, guest.LedgerPort)
	return &Ledger{
		cfg: cfg, rec: newRecorder(out, "ledger", cfg.Target),
		sum: LedgerSummary{Kind: KindSummary, Probe: "ledger", Run: cfg.Run},
	}
}

// Run appends until ctx is done. An unreachable guest is a result, not an error.
func (l *Ledger) Run(ctx context.Context) (LedgerSummary, error) {
	for ctx.Err() == nil {
		err := l.session(ctx)
		if ctx.Err() == nil && err != nil {
			l.rec.line(LedgerLine{Kind: KindDisconnect, At: Now(), Run: l.cfg.Run, Reason: err.Error()})
			pause(ctx, 100*time.Millisecond)
		}
	}
	if gap := Now() - l.ack; l.ack != 0 && milliseconds(gap) > l.sum.LongestMS {
		l.sum.LongestMS, l.sum.Begin = milliseconds(gap), l.ack
	}
	l.rec.line(l.sum)
	return l.sum, l.rec.Err()
}

// session appends over one connection until it breaks.
func (l *Ledger) session(ctx context.Context) error {
	c, err := dialLedger(ctx, l.cfg.Target, l.cfg.Timeout)
	if err != nil {
		return err
	}
	defer c.close()
	l.sum.Connections++
	l.rec.line(LedgerLine{Kind: KindConnect, At: Now(), Run: l.cfg.Run})
	tick := time.NewTicker(l.cfg.Interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := l.appendOne(c); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

func (l *Ledger) appendOne(c *ledgerConn) error {
	l.seq++
	line := LedgerLine{Run: l.cfg.Run, Seq: l.seq, Sent: Now()}
	receipt, err := c.append(payload(l.cfg.Run, l.seq))
	line.At = Now()
	if err != nil {
		line.Kind, line.Reason = KindUnknown, err.Error()
		l.sum.Unknown++
		l.rec.line(line)
		return err
	}
	if gap := line.At - l.ack; l.ack != 0 && milliseconds(gap) > l.sum.LongestMS {
		l.sum.LongestMS, l.sum.Begin = milliseconds(gap), l.ack
	}
	l.ack = line.At
	l.sum.Acknowledged++
	l.sum.LastNumber = receipt.Number
	line.Kind, line.Number, line.Checksum, line.Boot = KindAck, receipt.Number, receipt.Checksum, receipt.Boot.String()
	l.rec.line(line)
	return nil
}

// pause waits for d or for ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// payload is what record seq of a run carries: both numbers, and bytes made
// from them, so that the content can be checked without having been kept.
func payload(run, seq uint64) []byte {
	b := make([]byte, payloadSize)
	rng := rand.New(rand.NewPCG(run, seq))
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], rng.Uint64())
	}
	binary.BigEndian.PutUint64(b, run)
	binary.BigEndian.PutUint64(b[8:], seq)
	return b
}

// identity is the inverse of payload; ok is false for bytes that payload did not make.
func identity(b []byte) (run, seq uint64, ok bool) {
	if len(b) != payloadSize {
		return 0, 0, false
	}
	run, seq = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return run, seq, string(b) == string(payload(run, seq))
}

// ledgerConn speaks the ledger's protocol.
type ledgerConn struct {
	conn    net.Conn
	in      *bufio.Reader
	timeout time.Duration
	stop    func() bool
}

func dialLedger(ctx context.Context, target string, timeout time.Duration) (*ledgerConn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, fmt.Errorf("connect to ledger: %w", err)
	}
	// When ctx ends, an answer that is on its way still has a moment: fewer unknown records.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond)) })
	return &ledgerConn{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), timeout: timeout, stop: stop}, nil
}

func (c *ledgerConn) close() {
	c.stop()
	_ = c.conn.Close()
}

// errRefused: the guest answered and did not do it.
var errRefused = errors.New("the guest refused")

// ask sends a request and returns the first line of the answer.
func (c *ledgerConn) ask(format string, args ...any) (string, error) {
	_ = c.conn.SetDeadline(time.Now().Add(c.timeout))
	if _, err := fmt.Fprintf(c.conn, format+"\n", args...); err != nil {
		return "", fmt.Errorf("send to ledger: %w", err)
	}
	return c.readLine()
}

func (c *ledgerConn) readLine() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("wait for ledger: %w", err)
	}
	line = strings.TrimSpace(line)
	if text, refused := strings.CutPrefix(line, "ERR "); refused {
		return "", fmt.Errorf("%w: %s", errRefused, text)
	}
	return line, nil
}

func (c *ledgerConn) append(payload []byte) (ledger.Receipt, error) {
	line, err := c.ask("APPEND %s", base64.StdEncoding.EncodeToString(payload))
	if err != nil {
		return ledger.Receipt{}, err
	}
	var r ledger.Receipt
	var boot string
	if _, err := fmt.Sscanf(line, "OK %d %x %s", &r.Number, &r.Checksum, &boot); err != nil {
		return r, fmt.Errorf("answer of ledger %q: %w", line, err)
	}
	r.Boot, err = ledger.ParseBootID(boot)
	return r, err
}

func (c *ledgerConn) status() (guest.LedgerStatus, error) {
	var st guest.LedgerStatus
	line, err := c.ask("STATUS")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(line), &st); err != nil {
		return st, fmt.Errorf("answer of ledger %q: %w", line, err)
	}
	return st, nil
}

// waitOpen returns the status once the guest has found its last record, which takes a moment after a boot.
func (c *ledgerConn) waitOpen(ctx context.Context) (guest.LedgerStatus, error) {
	for {
		st, err := c.status()
		switch {
		case err != nil:
			return st, err
		case st.Error != "":
			return st, fmt.Errorf("%w: %s", errRefused, st.Error)
		case st.Open:
			return st, nil
		}
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return st, fmt.Errorf("wait for the ledger to open: %w", ctx.Err())
		}
	}
}

// read visits the slots first to last as they stand on the guest's disk.
func (c *ledgerConn) read(first, last uint64, visit func(n uint64, slot []byte)) error {
	line, err := c.ask("READ %d %d", first, last)
	slot := make([]byte, ledger.SlotSize)
	for ; err == nil && line != "END"; line, err = c.readLine() {
		var n, count uint64
		if _, err := fmt.Sscanf(line, "DATA %d %d", &n, &count); err != nil {
			return fmt.Errorf("answer of ledger %q: %w", line, err)
		}
		for ; count > 0; count, n = count-1, n+1 {
			_ = c.conn.SetDeadline(time.Now().Add(c.timeout))
			if _, err := io.ReadFull(c.in, slot); err != nil {
				return fmt.Errorf("read record %d: %w", n, err)
			}
			visit(n, slot)
		}
		_ = c.conn.SetDeadline(time.Now().Add(c.timeout))
	}
	return err
}
