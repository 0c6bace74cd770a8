package demo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
)

const (
	// streamRate is a video's, in bytes a second.
	streamRate = 128 << 10
	// downloadMiB at downloadRate lasts 8 s: longer than a move, so that most moves fall into one. Not faster,
	// since two emulated guests must leave the machine's two cores room for their own moves.
	downloadMiB  = 2
	downloadRate = 256 << 10
)

// stream is one connection that is read for as long as the moves go on.
type stream struct {
	*prober
	guest *guest
	begin time.Duration
}

func (d *demo) startStream(g *guest) error {
	p, err := d.startProber("stream-"+g.id.String()+".jsonl", nil, "stream", "--target", g.address(), "--rate", strconv.Itoa(streamRate))
	g.stream = &stream{p, g, d.clock.now()}
	return err
}

// end stops the stream and says what came.
func (d *demo) endStream(s *stream) report.Transfer {
	end := d.clock.now()
	t := report.Transfer{Kind: "stream", Guest: s.guest.name(), Begin: s.begin, End: end}
	err := s.stop()
	var sum probe.StreamSummary
	if err = errors.Join(err, s.summary(&sum)); err != nil {
		t.Reason = err.Error()
		return t
	}
	t.Bytes, t.Stall = sum.Bytes, fromMS(sum.LongestMS)
	switch {
	case sum.Broken:
		t.Reason = sum.Reason
	case sum.Wrong > 0:
		t.Reason = fmt.Sprintf("%d chunks are wrong", sum.Wrong)
	case sum.Chunks == 0:
		t.Reason = "nothing came"
	default:
		t.OK = true
	}
	return t
}

// downloads fetches one file after the other until it shall end.
type downloads struct {
	guest *guest
	last  chan struct{} // closed: no further one
	done  chan struct{}

	mu   sync.Mutex
	list []report.Transfer // guarded by mu
}

func (d *demo) startDownloads(g *guest) {
	w := &downloads{guest: g, last: make(chan struct{}), done: make(chan struct{})}
	g.files = w
	d.inBackground("download from "+g.name(), func(ctx context.Context) {
		defer close(w.done)
		for n := uint64(1); ctx.Err() == nil; n++ {
			t := d.download(ctx, g, n)
			w.mu.Lock()
			w.list = append(w.list, t)
			w.mu.Unlock()
			select {
			case <-w.last:
				return
			default:
			}
			if !t.OK {
				_ = rest(ctx, time.Second)
			}
		}
	})
}

// download fetches one file with a content of its own.
func (d *demo) download(ctx context.Context, g *guest, n uint64) report.Transfer {
	t := report.Transfer{Kind: "download", Guest: g.name(), Begin: d.clock.now()}
	file := fmt.Sprintf("download-%s-%02d.jsonl", g.id, n)
	var sum probe.DownloadSummary
	p, err := d.startProber(file, nil, "download", "--target", g.address(), "--mib", strconv.Itoa(downloadMiB),
		"--rate", strconv.Itoa(downloadRate), "--seed", strconv.FormatUint(n, 10))
	if err == nil {
		select {
		case <-p.done:
		case <-ctx.Done():
			_ = p.stop()
		}
		err = errors.Join(p.err, p.summary(&sum))
	}
	t.End = d.clock.now()
	t.Bytes, t.Stall, t.OK = sum.Bytes, fromMS(sum.LongestMS), err == nil && sum.OK
	switch {
	case err != nil:
		t.Reason = err.Error()
	case sum.Broken:
		t.Reason = sum.Reason
	case !sum.OK:
		t.Reason = fmt.Sprintf("%d of %d bytes came, with the hash %s instead of %s", sum.Bytes, sum.Size, sum.SHA256, sum.Expected)
	}
	return t
}

// end lets the download under way come to its end and returns all.
func (w *downloads) end(ctx context.Context) ([]report.Transfer, error) {
	close(w.last)
	limit := time.After(taskLimit)
	select {
	case <-w.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-limit:
		return nil, fmt.Errorf("the last download from %s does not end within %s", w.guest.name(), taskLimit)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list, nil
}

// startWorkload lets both guests that move do the same work, and the protected ones keep ledgers.
func (d *demo) startWorkload(ctx context.Context) error {
	for _, g := range []*guest{d.moving, d.byHand, d.failing} {
		if err := d.startLedger(g); err != nil {
			return err
		}
	}
	for _, g := range []*guest{d.moving, d.byHand} {
		if err := d.startStream(g); err != nil {
			return err
		}
		d.startDownloads(g)
	}
	return rest(ctx, settle)
}

// endTransfers judges the streams and downloads that went on over all moves, and ends the guest that was moved by hand.
func (d *demo) endTransfers(ctx context.Context) error {
	var all []report.Transfer
	var errs []error
	for _, g := range []*guest{d.moving, d.byHand} {
		list, err := g.files.end(ctx)
		errs = append(errs, err)
		all = append(append(all, d.endStream(g.stream)), list...)
	}
	d.run.Transfers = all
	right := 0
	for _, t := range all {
		if t.Guest != d.moving.name() {
			continue
		}
		if t.Kind == "stream" {
			d.tell("stream of %s: %.1f MiB over one connection, longest stall %d ms", t.Guest, float64(t.Bytes)/(1<<20), t.Stall.Milliseconds())
		} else if t.OK {
			right++
		}
		if !t.OK {
			errs = append(errs, fmt.Errorf("%s from %s: %s", t.Kind, t.Guest, t.Reason))
		}
	}
	d.tell("%d downloads of %d MiB from %s, all hashes checked", right, downloadMiB, d.moving.name())
	return errors.Join(append(errs, d.endByHand(ctx))...)
}

func fromMS(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
