package qga_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qga"
	"sauh.dev/sauh/internal/qga/qgatest"
)

// bubble runs f on simulated time with a fake agent.
func bubble(t *testing.T, f func(t *testing.T, a *qgatest.Agent, c *qga.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := qgatest.Start()
		defer a.Close()
		f(t, a, a.Client())
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnAgentThatIsWellAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		must(t, c.Ping(t.Context()))
		info, err := c.Info(t.Context())
		if err != nil || info.Version != "fake" || !info.Supports("guest-ping") || info.Supports("guest-fly") {
			t.Errorf("%+v %v", info, err)
		}
		if diff := cmp.Diff([]string{"guest-ping"}, a.Commands()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTheSocketOfAGuestIsAskedToo(t *testing.T) {
	a := qgatest.Start()
	defer a.Close()
	path := filepath.Join(t.TempDir(), "qga")
	c := qga.Open(path)
	if err := c.Ping(t.Context()); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("no port: %v", err)
	}
	must(t, a.Listen(t.Context(), path))
	must(t, c.Ping(t.Context()))
}

func TestASilentAgentCostsTheDeadlineAndNoMore(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		a.Silence(true)
		for want, ctx := range map[time.Duration]func() (context.Context, context.CancelFunc){
			qga.DefaultTimeout: func() (context.Context, context.CancelFunc) { return t.Context(), func() {} },
			time.Second:        func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), time.Second) },
		} {
			start := time.Now()
			ctx, cancel := ctx()
			err := c.Ping(ctx)
			cancel()
			if took := time.Since(start); took != want || !errors.Is(err, qga.ErrSilent) || !errors.Is(err, model.ErrUnavailable) {
				t.Errorf("%v after %s, want %s", err, took, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := c.Ping(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, qga.ErrSilent) {
			t.Errorf("a caller that went away: %v", err)
		}
	})
}

func TestALateAnswerIsNeverTakenForAnother(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		n := 0
		a.Handle("count", func(json.RawMessage) (any, error) { n++; return n, nil })
		a.Silence(true)
		for range 3 {
			if _, err := qga.Ask[int](t.Context(), c, "count", nil); !errors.Is(err, qga.ErrSilent) {
				t.Fatal(err)
			}
		}
		a.Silence(false) // three synchronizations are answered late now
		a.Rubbish([]byte("{\"return\": 99}\n\xff{\"return\": 98}\n\xff{\"ret"))
		got, err := qga.Ask[int](t.Context(), c, "count", nil)
		if err != nil || got != 1 {
			t.Errorf("got %d, %v", got, err)
		}
	})
}

func TestNoRubbishBeforeTheAnswerConfuses(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	pieces := []string{"\xff", "\n", "{", "}", `{"return": 7}`, `{"return": {}}`, "\xff\xff", `"`, strings.Repeat("x", 5000), `{"error":{"class":"X","desc":"y"}}`}
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		a.Handle("which", func(json.RawMessage) (any, error) { return "this", nil })
		for range 200 {
			var rubbish []byte
			for range r.IntN(12) {
				rubbish = append(rubbish, pieces[r.IntN(len(pieces))]...)
			}
			a.Rubbish(rubbish)
			if got, err := qga.Ask[string](t.Context(), c, "which", nil); err != nil || got != "this" {
				t.Fatalf("after %q: %q, %v", rubbish, got, err)
			}
		}
	})
}

func TestAHalfRequestInTheAgentsEarHarmsNoLaterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- (&qga.Server{}).Serve(ours) }()
		if _, err := theirs.Write([]byte(`{"execute": "guest-sh`)); err != nil {
			t.Fatal(err)
		}
		c := qga.New(func(context.Context) (net.Conn, error) { return theirs, nil })
		must(t, c.Ping(t.Context()))
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestMessagesMayBeLongAndComeInPieces(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		long := strings.Repeat("long", 200_000)
		a.Handle("echo", func(args json.RawMessage) (any, error) { return args, nil })
		got, err := qga.Ask[map[string]string](t.Context(), c, "echo", map[string]string{"text": long})
		if err != nil || got["text"] != long {
			t.Errorf("%d bytes, %v", len(got["text"]), err)
		}
		a.Split()
		got, err = qga.Ask[map[string]string](t.Context(), c, "echo", map[string]string{"text": "short"})
		if err != nil || got["text"] != "short" {
			t.Errorf("in single bytes: %v, %v", got, err)
		}
	})
}

func TestARefusalIsTheAgentsOwnWords(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		a.Handle("guest-exec", func(json.RawMessage) (any, error) { return nil, errors.New("no such program") })
		_, err := c.Exec(t.Context(), qga.Program{Path: "/bin/x"})
		var refusal *qga.Error
		if !errors.As(err, &refusal) || err.Error() != "guest-exec: no such program" {
			t.Errorf("got %v", err)
		}
		if _, err := c.OSInfo(t.Context()); !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" {
			t.Errorf("an unknown command: %v", err)
		}
	})
}

func TestCallsAtOnceWaitForOneAnother(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		at := 0
		a.Handle("slow", func(json.RawMessage) (any, error) {
			at++
			defer func() { at-- }()
			time.Sleep(100 * time.Millisecond)
			return at, nil
		})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if got, err := qga.Ask[int](t.Context(), c, "slow", nil); err != nil || got != 1 {
					t.Errorf("%d at once, %v", got, err)
				}
			})
		}
		wg.Wait()
		a.Silence(true)
		wg.Go(func() { _ = c.Ping(t.Context()) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, qga.ErrSilent) {
			t.Errorf("a call behind another one says %v, and must not say that the guest is silent", err)
		}
		wg.Wait()
	})
}

func TestAShutdownThatIsObeyedIsNotAnswered(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		asked := make(chan string, 1)
		a.Handle("guest-shutdown", func(args json.RawMessage) (any, error) { asked <- string(args); return nil, qga.ErrNoAnswer })
		must(t, c.Shutdown(t.Context(), qga.PowerOff))
		if got := <-asked; got != `{"mode":"powerdown"}` {
			t.Errorf("asked %s", got)
		}
		a.Handle("guest-shutdown", func(json.RawMessage) (any, error) { return nil, errors.New("not now") })
		if err := c.Shutdown(t.Context(), qga.Reboot); err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("refused: %v", err)
		}
		a.Silence(true)
		if err := c.Shutdown(t.Context(), qga.Halt); !errors.Is(err, qga.ErrSilent) {
			t.Errorf("silent: %v", err)
		}
	})
}

func TestFileSystemsAreFrozenAndThawed(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		state := qga.Thawed
		a.Handle("guest-fsfreeze-status", func(json.RawMessage) (any, error) { return state, nil })
		a.Handle("guest-fsfreeze-freeze", func(json.RawMessage) (any, error) {
			time.Sleep(20 * time.Second) // longer than any other command may take
			state = qga.Frozen
			return 2, nil
		})
		a.Handle("guest-fsfreeze-thaw", func(json.RawMessage) (any, error) { state = qga.Thawed; return 2, nil })
		n, err := c.Freeze(t.Context())
		if s, _ := c.FreezeStatus(t.Context()); err != nil || n != 2 || s != qga.Frozen {
			t.Errorf("%d %q %v", n, s, err)
		}
		n, err = c.Thaw(t.Context())
		if s, _ := c.FreezeStatus(t.Context()); err != nil || n != 2 || s != qga.Thawed {
			t.Errorf("%d %q %v", n, s, err)
		}
	})
}

func TestAProgramRunsInsideTheGuest(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		polls := 0
		a.Handle("guest-exec", func(args json.RawMessage) (any, error) {
			want := `{"path":"/bin/cat","arg":["-"],"input-data":"aGk=","capture-output":true}`
			if diff := cmp.Diff(want, string(args)); diff != "" {
				t.Error(diff)
			}
			return map[string]int{"pid": 7}, nil
		})
		a.Handle("guest-exec-status", func(args json.RawMessage) (any, error) {
			if polls++; polls < 3 {
				return map[string]bool{"exited": false}, nil
			}
			return map[string]any{"exited": true, "exitcode": 3, "out-data": base64.StdEncoding.EncodeToString([]byte("hi"))}, nil
		})
		p := qga.Program{Path: "/bin/cat", Args: []string{"-"}, Input: []byte("hi"), Capture: true}
		got, err := c.Run(t.Context(), p)
		if diff := cmp.Diff(qga.ExecStatus{Exited: true, ExitCode: 3, Out: []byte("hi")}, got); diff != "" || err != nil || polls != 3 {
			t.Errorf("%v %s", err, diff)
		}
		polls = -1000
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := c.Run(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a program that goes on: %v", err)
		}
	})
}

func TestFilesAreReadAndWrittenInPieces(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		var file []byte
		at, open := 0, 0
		a.Handle("guest-file-open", func(json.RawMessage) (any, error) { open++; at = 0; return 4, nil })
		a.Handle("guest-file-close", func(json.RawMessage) (any, error) { open--; return nil, nil })
		a.Handle("guest-file-write", func(args json.RawMessage) (any, error) {
			var w struct {
				Data []byte `json:"buf-b64"`
			}
			_ = json.Unmarshal(args, &w)
			n := min(len(w.Data), 300_000) // a short write
			file = append(file, w.Data[:n]...)
			return map[string]int{"count": n}, nil
		})
		a.Handle("guest-file-read", func(args json.RawMessage) (any, error) {
			var r struct{ Count int }
			_ = json.Unmarshal(args, &r)
			end := min(at+r.Count, len(file))
			data := file[at:end]
			at = end
			return map[string]any{"count": len(data), "buf-b64": data, "eof": at == len(file)}, nil
		})
		want := bytes.Repeat([]byte("0123456789"), 250_000)
		must(t, c.WriteFile(t.Context(), "/f", want))
		for limit, more := range map[int]bool{len(want): false, len(want) + 1: false, 1_500_000: true} {
			got, gotMore, err := c.ReadFile(t.Context(), "/f", limit)
			if err != nil || gotMore != more || !bytes.Equal(got, want[:min(limit, len(want))]) {
				t.Errorf("limit %d: %d bytes, more %v, %v", limit, len(got), gotMore, err)
			}
		}
		if open != 0 {
			t.Errorf("%d files are left open in the guest", open)
		}
	})
}

func TestPasswordsTravelEncoded(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		var got string
		a.Handle("guest-set-user-password", func(args json.RawMessage) (any, error) { got = string(args); return nil, nil })
		must(t, c.SetPassword(t.Context(), "root", "hi", false))
		if diff := cmp.Diff(`{"crypted":false,"password":"aGk=","username":"root"}`, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAddressesAndSystemAreReadAsAgentsWriteThem(t *testing.T) {
	bubble(t, func(t *testing.T, a *qgatest.Agent, c *qga.Client) {
		a.Handle("guest-network-get-interfaces", func(json.RawMessage) (any, error) {
			return json.RawMessage(`[{"name":"lo","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"127.0.0.1","prefix":8}]},
				{"name":"eth0","hardware-address":"bc:24:11:00:00:01","statistics":{"tx-bytes":1}}]`), nil
		})
		a.Handle("guest-get-osinfo", func(json.RawMessage) (any, error) {
			return json.RawMessage(`{"id":"debian","pretty-name":"Debian GNU/Linux 12 (bookworm)","machine":"x86_64"}`), nil
		})
		ifs, err := c.Interfaces(t.Context())
		want := []qga.Interface{{Name: "lo", Addresses: []qga.Address{{IP: "127.0.0.1", Type: "ipv4", Prefix: 8}}}, {Name: "eth0", MAC: "bc:24:11:00:00:01"}}
		if diff := cmp.Diff(want, ifs); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
		os, err := c.OSInfo(t.Context())
		if diff := cmp.Diff(qga.OSInfo{ID: "debian", PrettyName: "Debian GNU/Linux 12 (bookworm)", Machine: "x86_64"}, os); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	})
}
