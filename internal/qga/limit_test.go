package qga

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// endless says {"return": "xxxx… for ever, once it was synchronized.
type endless struct {
	net.Conn
	synced int
	said   int
	answer bytes.Buffer
}

func (e *endless) Write(b []byte) (int, error) {
	if e.synced++; e.synced == 1 {
		var r struct{ Arguments struct{ ID int64 } }
		_ = json.Unmarshal(bytes.Trim(b, "\xff\n"), &r)
		fmt.Fprintf(&e.answer, "\xff{\"return\": %d}\n{\"return\": \"", r.Arguments.ID)
	}
	return len(b), nil
}

func (e *endless) Read(b []byte) (int, error) {
	if e.answer.Len() > 0 {
		return e.answer.Read(b)
	}
	for i := range b {
		b[i] = 'x'
	}
	e.said += len(b)
	return len(b), nil
}

func (e *endless) Close() error                { return nil }
func (e *endless) SetDeadline(time.Time) error { return nil }

func TestAGuestCannotFillTheHostsMemory(t *testing.T) {
	e := &endless{}
	c := New(func(context.Context) (net.Conn, error) { return e, nil })
	c.most = 1 << 20
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := c.Call(ctx, "guest-info", nil, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) || e.said > 2<<20 {
		t.Errorf("%v after %d bytes", err, e.said)
	}
}
