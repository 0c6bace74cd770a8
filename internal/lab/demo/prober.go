package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/probe"
)

// prober is a `sauh lab probe …` that runs in the room's own network, and its record.
type prober struct {
	cmd  *exec.Cmd
	file *os.File
	done chan struct{}
	err  error // of the process; valid when done is closed

	stopping atomic.Bool
}

// stopLimit is how long a probe may take to write its summary.
const stopLimit = 10 * time.Second

// startProber runs a probe with its record in file; lines, if any, sees each line too, in a goroutine of its own.
func (d *demo) startProber(file string, lines func([]byte), args ...string) (*prober, error) {
	f, err := os.Create(filepath.Join(d.Out, "probes", file))
	if err != nil {
		return nil, fmt.Errorf("start probe: %w", err)
	}
	p := &prober{file: f, done: make(chan struct{})}
	p.cmd = d.room.Exec(context.Background(), lab.RoomName, append([]string{"sauh", "lab", "probe"}, args...)...)
	// A group of its own: Ctrl-C on the terminal is not for it, and an interrupt reaches the program
	// itself through the one that started it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stdout = f
	var said bytes.Buffer
	p.cmd.Stderr = &said
	var out io.ReadCloser
	if lines != nil {
		p.cmd.Stdout = nil
		if out, err = p.cmd.StdoutPipe(); err != nil {
			return nil, errors.Join(fmt.Errorf("start probe: %w", err), f.Close())
		}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start probe: %w", err), f.Close())
	}
	d.inBackground("read "+file, func(context.Context) { p.follow(out, lines, &said) })
	// The probe ends with the story at the latest.
	d.inBackground("stop "+file, func(ctx context.Context) {
		select {
		case <-ctx.Done():
			_ = p.stop()
		case <-p.done:
		}
	})
	return p, nil
}

// needs ends the story if the probe ends before it is stopped: what it would have seen is lost, and
// nothing could be judged.
func (d *demo) needs(p *prober) {
	d.inBackground("watch "+p.file.Name(), func(context.Context) {
		<-p.done
		if !p.stopping.Load() {
			d.fail(fmt.Errorf("the probe that writes %s ended by itself: %w", filepath.Base(p.file.Name()), p.err))
		}
	})
}

// follow reads to the end and collects the process.
func (p *prober) follow(out io.Reader, lines func([]byte), said *bytes.Buffer) {
	defer close(p.done)
	if lines != nil {
		in := bufio.NewReader(io.TeeReader(out, p.file))
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				break
			}
			lines(line)
		}
	}
	p.err = p.cmd.Wait()
	if text := bytes.TrimSpace(said.Bytes()); p.err != nil && len(text) > 0 {
		p.err = fmt.Errorf("%w: %s", p.err, text)
	}
	if err := p.file.Close(); p.err == nil {
		p.err = err
	}
}

// stop lets the probe write its summary, and waits. Idempotent.
func (p *prober) stop() error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	p.stopping.Store(true)
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT)
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
	return p.err
}

// summary decodes the last line of the record into v.
func (p *prober) summary(v any) error {
	text, err := os.ReadFile(p.file.Name())
	if err != nil {
		return err
	}
	text = bytes.TrimSpace(text)
	last := text[bytes.LastIndexByte(text, '\n')+1:]
	var kind struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(last, &kind); err != nil || kind.Kind != probe.KindSummary {
		return fmt.Errorf("%s ends without a summary: %w", filepath.Base(p.file.Name()), errors.Join(p.err, err))
	}
	return json.Unmarshal(last, v)
}

// echo is the echo probe of a guest, on for the whole run.
type echo struct {
	mu      sync.Mutex
	samples []probe.Sample // index is Seq; Sent 0 is one that was not written down yet; guarded by mu
}

func (d *demo) startEcho(g *guest) error {
	e := &echo{}
	p, err := d.startProber("echo-"+g.id.String()+".jsonl", e.line, "echo", "--target", g.address(), "--interval", "10ms")
	if err != nil {
		return err
	}
	d.needs(p)
	g.echo = e
	return nil
}

func (e *echo) line(text []byte) {
	var l probe.EchoLine
	if json.Unmarshal(text, &l) != nil || l.Kind != probe.KindEcho && l.Kind != probe.KindLost {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for uint64(len(e.samples)) <= l.Seq {
		e.samples = append(e.samples, probe.Sample{})
	}
	if l.Kind == probe.KindEcho || e.samples[l.Seq].Recv == 0 {
		e.samples[l.Seq] = l.Sample
	}
}

// series returns the echoes whose fate is known.
func (e *echo) series() []probe.Sample {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]probe.Sample, 0, len(e.samples))
	for _, s := range e.samples {
		if s.Sent != 0 {
			out = append(out, s)
		}
	}
	return out
}

// between returns those sent in a part of the run.
func (e *echo) between(from, to time.Duration) []probe.Sample {
	var out []probe.Sample
	for _, s := range e.series() {
		if s.Sent >= from && s.Sent <= to {
			out = append(out, s)
		}
	}
	return out
}
