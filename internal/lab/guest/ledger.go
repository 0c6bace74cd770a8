package guest

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/lab/guest/ledger"
)

// LedgerStatus is the answer to STATUS.
type LedgerStatus struct {
	Open  bool   `json:"open"` // false while the region is still scanned
	Last  uint64 `json:"last"`
	Slots uint64 `json:"slots"`
	Boot  string `json:"boot"`
	Error string `json:"error,omitempty"` // why it cannot be opened
}

// LedgerService serves the ledger over TCP; the protocol is in DESIGN.md.
// Open it once; until then requests wait.
type LedgerService struct {
	dev    ledger.Device
	size   int64
	boot   ledger.BootID
	opened chan struct{} // closed by Open

	mu  sync.Mutex // guards log
	log *ledger.Log
	err error

	readMu  sync.Mutex // guards readBuf
	readBuf []byte
}

// NewLedgerService serves the size bytes of dev. readBuf is for reading, aligned as dev wants it.
func NewLedgerService(dev ledger.Device, size int64, boot ledger.BootID, readBuf []byte) *LedgerService {
	return &LedgerService{dev: dev, size: size, boot: boot, opened: make(chan struct{}), readBuf: readBuf}
}

// Open scans the region for the last record. buf as for ledger.Open.
func (s *LedgerService) Open(now func() time.Time, buf []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(s.opened)
	s.log, s.err = ledger.Open(s.dev, s.size, s.boot, now, buf)
	return s.err
}

// Status does not wait for Open.
func (s *LedgerService) Status() LedgerStatus {
	st := LedgerStatus{Boot: s.boot.String(), Slots: uint64(s.size / ledger.SlotSize)}
	select {
	case <-s.opened:
	default:
		return st
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		st.Error = s.err.Error()
		return st
	}
	st.Open, st.Last = true, s.log.Last()
	return st
}

// Serve accepts connections until ctx is done, and returns when all have ended.
func (s *LedgerService) Serve(ctx context.Context, ln net.Listener) error {
	return serve(ctx, ln, func(conn net.Conn) {
		in, out := bufio.NewReaderSize(conn, 4096), bufio.NewWriterSize(conn, 64<<10)
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return
			}
			if err := s.answer(out, strings.TrimSpace(string(line))); err != nil {
				return
			}
			if err := out.Flush(); err != nil {
				return
			}
		}
	})
}

// answer does one request. Its error ends the connection.
func (s *LedgerService) answer(out io.Writer, line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	var err error
	switch verb {
	case "STATUS":
		return writeJSON(out, s.Status())
	case "APPEND":
		err = s.append(out, rest)
	case "READ":
		err = s.read(out, rest)
	case "CHECK":
		err = s.check(out)
	default:
		err = fmt.Errorf("unknown request %q: use STATUS, APPEND, READ or CHECK", verb)
	}
	var broken *connError
	if err == nil || errors.As(err, &broken) {
		return err
	}
	_, err = fmt.Fprintf(out, "ERR %s\n", err)
	return err
}

// connError is an error in the middle of an answer: nothing sensible can follow.
type connError struct{ error }

func (s *LedgerService) append(out io.Writer, arg string) error {
	payload, err := base64.StdEncoding.DecodeString(arg)
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	<-s.opened
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	r, err := s.log.Append(payload)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "OK %d %08x %s\n", r.Number, r.Checksum, r.Boot)
	return err
}

// read streams slots as they stand on the disk: DATA lines, each followed by its bytes, then END.
func (s *LedgerService) read(out io.Writer, arg string) error {
	var first, last uint64
	if _, err := fmt.Sscanf(arg, "%d %d", &first, &last); err != nil || first < 1 || last > uint64(s.size/ledger.SlotSize) {
		return fmt.Errorf("READ %q: use READ <first> <last>, from 1 to %d", arg, s.size/ledger.SlotSize)
	}
	s.readMu.Lock()
	defer s.readMu.Unlock()
	per := uint64(len(s.readBuf) / ledger.SlotSize)
	for n := first; n <= last; n += per {
		count := min(per, last-n+1)
		part := s.readBuf[:count*ledger.SlotSize]
		if _, err := s.dev.ReadAt(part, int64(n-1)*ledger.SlotSize); err != nil {
			return fmt.Errorf("read records from %d: %w", n, err)
		}
		if _, err := fmt.Fprintf(out, "DATA %d %d\n", n, count); err != nil {
			return &connError{err}
		}
		if _, err := out.Write(part); err != nil {
			return &connError{err}
		}
	}
	_, err := io.WriteString(out, "END\n")
	return err
}

func (s *LedgerService) check(out io.Writer) error {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	report, err := ledger.Check(s.dev, s.size, s.readBuf)
	if err != nil {
		return err
	}
	return writeJSON(out, report)
}

func writeJSON(out io.Writer, v any) error {
	if err := json.NewEncoder(out).Encode(v); err != nil {
		return &connError{err}
	}
	return nil
}

// serve runs handle for each connection until ctx is done, then closes them and waits.
func serve(ctx context.Context, ln net.Listener, handle func(net.Conn)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
		wg.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			handle(conn)
		})
	}
}
