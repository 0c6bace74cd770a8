package qmptest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/qmp"
)

// pair migrates from a to b with a target that runs on by itself or stays paused.
func pair(t *testing.T, paused bool, then func(ctx context.Context, r *Room, a, b *qmp.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom()
		defer r.Close()
		source, target := r.Start("a"), r.StartIncoming("b")
		var conns []*qmp.Conn
		for _, q := range []*QEMU{source, target} {
			c, err := q.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		do := func(c *qmp.Conn, command string, args any) {
			if err := c.Execute(t.Context(), command, args, nil); err != nil {
				t.Error(err)
			}
		}
		addr := map[string]any{"channels": []any{map[string]any{"addr": map[string]string{"host": "127.0.0.1", "port": "1"}}}}
		do(conns[1], "migrate-set-capabilities", map[string]any{
			"capabilities": []any{map[string]any{"capability": "late-block-activate", "state": true}},
		})
		if !paused {
			do(conns[1], "cont", nil)
		}
		do(conns[1], "migrate-incoming", addr)
		do(conns[0], "migrate", addr)
		time.Sleep(time.Second)
		then(t.Context(), r, conns[0], conns[1])
	})
}

func TestAGuestMovesBetweenTwoFakes(t *testing.T) {
	pair(t, false, func(_ context.Context, r *Room, _, _ *qmp.Conn) {
		want := []string{"a running", "b inmigrate", "a finish-migrate", "b running", "a postmigrate"}
		if diff := cmp.Diff(want, r.Log()); diff != "" {
			t.Error(diff)
		}
		if v := r.Violations(); len(v) > 0 {
			t.Error(v)
		}
	})
}

func TestTheRoomNoticesASecondRunner(t *testing.T) {
	pair(t, true, func(ctx context.Context, r *Room, a, b *qmp.Conn) {
		if err := a.Execute(ctx, "cont", nil, nil); err != nil {
			t.Error(err)
		}
		if err := b.Execute(ctx, "cont", nil, nil); err == nil {
			t.Error("the image lock was not in the way")
		}
		r.mu.Lock()
		r.qemus[1].setLocked("running") // as on a storage without locks
		r.mu.Unlock()
		want := []string{"b runs while another one does"}
		if diff := cmp.Diff(want, r.Violations()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTheRoomNoticesOldMemory(t *testing.T) {
	pair(t, true, func(ctx context.Context, r *Room, a, b *qmp.Conn) {
		for _, command := range []string{"cont", "stop", "quit"} {
			if err := b.Execute(ctx, command, nil, nil); err != nil && command != "quit" {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
		if err := a.Execute(ctx, "cont", nil, nil); err != nil {
			t.Error(err)
		}
		want := []string{"a runs with memory older than its disk"}
		if diff := cmp.Diff(want, r.Violations()); diff != "" {
			t.Error(diff)
		}
	})
}
