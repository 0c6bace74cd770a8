package qmp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/qmp/qmptest"
)

var update = flag.Bool("update", false, "record testdata anew")

func fake(t *testing.T) *qmptest.QEMU {
	t.Helper()
	r := qmptest.NewRoom()
	t.Cleanup(r.Close)
	return r.Start("vm")
}

func dial(t *testing.T, q *qmptest.QEMU) *qmp.Conn {
	t.Helper()
	c, err := q.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestDialGreetsAndNegotiatesOverASocket(t *testing.T) {
	q := fake(t)
	path := filepath.Join(t.TempDir(), "qmp")
	if err := q.Listen(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	c, err := qmp.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.Version(); got.String() != "10.0.2" || !got.AtLeast(10, 0) || got.AtLeast(10, 1) {
		t.Errorf("version %s", got)
	}
	if diff := cmp.Diff([]string{"qmp_capabilities"}, q.Commands()); diff != "" {
		t.Error(diff)
	}
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a QEMU that does not greet: %v", err)
	}
	if _, err := qmp.Dial(t.Context(), path+".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
}

func TestARefusalIsAnErrorWithItsClass(t *testing.T) {
	c := dial(t, fake(t))
	err := c.Execute(t.Context(), "no-such-thing", nil, nil)
	var e *qmp.Error
	if !errors.As(err, &e) || e.Class != "CommandNotFound" || !strings.Contains(err.Error(), "no-such-thing") {
		t.Errorf("got %v", err)
	}
	if err := c.Execute(t.Context(), "query-status", nil, nil); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
}

func TestAnswersFindTheirCommandsWhateverTheOrder(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() { // a QEMU that answers twenty commands backwards
		enc, dec := json.NewEncoder(theirs), json.NewDecoder(theirs)
		_ = enc.Encode(map[string]any{"QMP": map[string]any{}})
		var ids []int
		for range 21 {
			var cmd struct {
				ID        int `json:"id"`
				Arguments struct{ N int }
			}
			_ = dec.Decode(&cmd)
			if cmd.Arguments.N == 0 {
				_ = enc.Encode(map[string]any{"return": struct{}{}, "id": cmd.ID})
				continue
			}
			ids = append(ids, cmd.ID<<16|cmd.Arguments.N)
		}
		for i := len(ids) - 1; i >= 0; i-- {
			_ = enc.Encode(map[string]any{"return": ids[i] & 0xffff, "id": ids[i] >> 16})
		}
	}()
	c, err := qmp.NewConn(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var wg sync.WaitGroup
	for n := 1; n <= 20; n++ {
		wg.Go(func() {
			var got int
			if err := c.Execute(t.Context(), "echo", map[string]int{"N": n}, &got); err != nil || got != n {
				t.Errorf("%d came back as %d, %v", n, got, err)
			}
		})
	}
	wg.Wait()
}

func TestAContextThatEndsLeavesTheConnectionUsable(t *testing.T) {
	q := fake(t)
	release := make(chan struct{})
	q.Handle("slow", func(json.RawMessage) (any, error) { <-release; return nil, nil })
	c := dial(t, q)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(release)
	var s struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &s); err != nil || s.Status != "running" {
		t.Errorf("afterwards: %q, %v", s.Status, err)
	}
}

func TestNoEventIsLostWhenNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := qmptest.NewRoom()
		defer r.Close()
		q := r.Start("vm")
		c, err := q.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		slow, gone := c.Subscribe(ctx), c.Subscribe(ctx)
		_ = gone // never read
		const n = 10000
		for i := range n {
			q.Event("MIGRATION", map[string]int{"n": i})
		}
		synctest.Wait()
		// The reader went on: commands are answered.
		if err := c.Execute(ctx, "query-status", nil, nil); err != nil {
			t.Fatal(err)
		}
		q.Die()
		i := 0
		for ev := range slow {
			if want := fmt.Sprintf(`{"n":%d}`, i); string(ev.Data) != want || ev.Name != "MIGRATION" {
				t.Fatalf("event %d: %s %s", i, ev.Name, ev.Data)
			}
			i++
		}
		if i != n {
			t.Errorf("%d of %d events, also after the end of the connection", i, n)
		}
		cancel()
		_ = c.Close()
	})
}

func TestTheEndOfQEMUEndsEverything(t *testing.T) {
	q := fake(t)
	q.Handle("hang", func(json.RawMessage) (any, error) { q.Die(); return nil, nil })
	c := dial(t, q)
	events := c.Subscribe(t.Context())
	if err := c.Execute(t.Context(), "hang", nil, nil); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("in flight: %v", err)
	}
	<-c.Done()
	if err := c.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
	if !errors.Is(c.Err(), qmp.ErrClosed) || !errors.Is(c.Err(), io.EOF) {
		t.Errorf("the reason: %v", c.Err())
	}
	if _, open := <-events; open {
		t.Error("the subscription goes on")
	}
}

func TestCloseTwiceIsOnceAndEndsSubscriptions(t *testing.T) {
	c := dial(t, fake(t))
	before := c.Subscribe(t.Context())
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, ch := range []<-chan qmp.Event{before, c.Subscribe(t.Context())} {
		if _, open := <-ch; open {
			t.Error("a subscription goes on")
		}
	}
}

func TestWhatIsNoQMPEndsTheConnectionWithAReason(t *testing.T) {
	for name, lines := range map[string]string{
		"no JSON":              "SSH-2.0-OpenSSH_9.2\r\n",
		"a nameless refusal":   `{"QMP":{}}{"error":{"class":"GenericError","desc":"JSON parse error"}}`,
		"two greetings":        `{"QMP":{}}{"QMP":{}}`,
		"nothing recognisable": `{"QMP":{}}{"hello":1}`,
		"an end in the middle": `{"QMP":{"ver`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := qmp.NewConn(t.Context(), replay([]byte(lines), func() int { return 7 }))
			if !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// stream is a recorded QEMU: it returns what QEMU sent in pieces, and never ahead
// of the commands that were answered.
type stream struct {
	mu     sync.Mutex
	cond   *sync.Cond
	data   []byte
	gates  []gate // from which offset on how many commands must have come
	read   int
	got    int
	size   func() int
	closed bool
	wrote  bytes.Buffer
}

type gate struct{ offset, commands int }

func replay(data []byte, size func() int) *stream {
	s := &stream{data: data, size: size}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var limit int
	for {
		limit = len(s.data)
		for _, g := range s.gates {
			if g.commands > s.got {
				limit = g.offset
				break
			}
		}
		if s.read < limit || limit == len(s.data) || s.closed {
			break
		}
		s.cond.Wait()
	}
	if s.closed || s.read == len(s.data) {
		return 0, io.EOF
	}
	n := copy(p, s.data[s.read:min(s.read+s.size(), limit)])
	s.read += n
	return n, nil
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got += bytes.Count(p, []byte("\n"))
	s.cond.Broadcast()
	return s.wrote.Write(p)
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cond.Broadcast()
	return nil
}

const session = "testdata/session.txt"

// record makes a session of 500 lines with the fake: commands, refusals, events, a migration.
func record(t *testing.T) {
	t.Helper()
	var b bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		r := qmptest.NewRoom()
		r.SetPace(qmptest.Pace{Round: 20 * time.Millisecond, Rounds: 10, Slack: time.Millisecond})
		defer r.Close()
		a, in := r.Start("a"), r.StartIncoming("b")
		a.Record(&b)
		ca, err := a.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer ca.Close()
		cb, err := in.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer cb.Close()
		do := func(c *qmp.Conn, command, args string) {
			_ = c.Execute(t.Context(), command, json.RawMessage(args), nil) // refusals belong to the session
			synctest.Wait()
		}
		addr := `{"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"inet","host":"127.0.0.1","port":"40001"}}]}`
		do(ca, "migrate-set-capabilities", `{"capabilities":[{"capability":"events","state":true}]}`)
		for i := range 75 {
			do(ca, "query-status", `{}`)
			do(ca, "device_add", fmt.Sprintf(`{"driver":"ünbekannt \"%d\"","id":"x\\y"}`, i))
			a.Event("BLOCK_IO_ERROR", map[string]any{"device": fmt.Sprintf("virtio%d", i), "reason": "Kein Platz: \u2028 \"voll\""})
		}
		do(cb, "migrate-incoming", addr)
		do(ca, "migrate", addr)
		for range 30 {
			do(ca, "query-migrate", `{}`)
			time.Sleep(10 * time.Millisecond)
		}
		for strings.Count(b.String(), "\n") < 500 {
			do(ca, "query-version", `{}`)
		}
		r.SetHook(nil)
	})
	lines := strings.SplitAfterN(b.String(), "\n", 501)
	if err := os.WriteFile(session, []byte(strings.Join(lines[:500], "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// parse plays the session to a Conn and returns everything it understood.
func parse(t *testing.T, recorded string, size func() int) (transcript []string) {
	t.Helper()
	var data []byte
	var gates []gate
	type command struct {
		Execute   string
		Arguments json.RawMessage
	}
	var commands []command
	for l := range strings.Lines(recorded) {
		if rest, ok := strings.CutPrefix(l, "< "); ok {
			data = append(data, rest...)
			continue
		}
		var c command
		if err := json.Unmarshal([]byte(strings.TrimPrefix(l, "> ")), &c); err != nil {
			t.Fatal(err)
		}
		gates = append(gates, gate{len(data), len(gates) + 1})
		if c.Execute != "qmp_capabilities" {
			commands = append(commands, c)
		}
	}
	// The end of the stream waits for one more command, which is never sent.
	gates = append(gates, gate{len(data), len(gates) + 1})
	data = append(data, ' ')
	s := replay(data, size)
	s.gates = gates
	c, err := qmp.NewConn(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	events := c.Subscribe(t.Context())
	for _, cmd := range commands {
		var out json.RawMessage
		err := c.Execute(t.Context(), cmd.Execute, cmd.Arguments, &out)
		transcript = append(transcript, fmt.Sprintf("%s → %s %v", cmd.Execute, out, err))
	}
	for range strings.Count(recorded, `"event":`) {
		ev := <-events
		transcript = append(transcript, fmt.Sprintf("%s %s %s", ev.Name, ev.Data, ev.Time.UTC().Format(time.RFC3339Nano)))
	}
	return append(transcript, s.wrote.String())
}

func TestARecordedSessionParsesTheSameHoweverItIsSplit(t *testing.T) {
	if *update {
		record(t)
	}
	b, err := os.ReadFile(session)
	if err != nil {
		t.Fatal(err)
	}
	recorded := string(b)
	if n := strings.Count(recorded, "\n"); n != 500 {
		t.Fatalf("the session has %d lines", n)
	}
	// In its middle, a message of 1 MiB and the command that asked for it.
	big, err := json.Marshal(map[string]any{"id": 900001, "return": strings.Repeat("Größe\n", 1<<20/6)})
	if err != nil {
		t.Fatal(err)
	}
	recorded = renumber(t, recorded, big)
	whole := parse(t, recorded, func() int { return 1 << 30 })
	if n := len(whole); n < 290 {
		t.Fatalf("only %d things understood", n)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for name, size := range map[string]func() int{
		"bytes":  func() int { return 1 },
		"lines":  func() int { return 80 },
		"random": func() int { return 1 + rnd.IntN(5000) },
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(whole, parse(t, recorded, size)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// renumber inserts the big answer into the middle of the session and counts the ids anew.
func renumber(t *testing.T, recorded string, big []byte) string {
	t.Helper()
	lines := strings.SplitAfter(recorded, "\n")
	half := 0
	for i, l := range lines {
		if i > len(lines)/2 && strings.HasPrefix(l, "> ") {
			half = i
			break
		}
	}
	lines = append(lines[:half:half], append([]string{
		`> {"execute":"query-qmp-schema","id":900001}` + "\n", "< " + string(big) + "\n",
	}, lines[half:]...)...)
	next, ids := 0, map[float64]int{}
	for i, l := range lines {
		if l == "" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(l[2:]), &m); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		id, ok := m["id"].(float64)
		if !ok {
			continue
		}
		if l[0] == '>' {
			next++
			ids[id] = next
		}
		m["id"] = ids[id]
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		lines[i] = l[:2] + string(b) + "\n"
	}
	return strings.Join(lines, "")
}

func TestAFakeThatSendsByteByByteIsUnderstood(t *testing.T) {
	q := fake(t)
	q.Split()
	c := dial(t, q)
	for range 20 {
		if err := c.Execute(t.Context(), "query-migrate", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}
