package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// maxConns bounds the connections; the agent has one per call under way.
const maxConns = 64

// call is a request on its way to the loop; reply is buffered, so that the loop never waits for a client.
type call struct {
	req   request
	reply chan response
}

// server takes requests from the socket and hands them to the loop.
type server struct {
	listener *net.UnixListener
	calls    chan<- call
	stop     context.CancelFunc
	done     <-chan struct{}
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// listen serves path until close is called.
func listen(ctx context.Context, path string, calls chan<- call) (*server, error) {
	d := net.Dialer{Timeout: time.Second}
	if conn, err := d.DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return nil, model.Errorf(model.ErrExists, "another guard serves %s: only one may run on a node", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil { // the guard may be the first of the node's processes
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	serving, cancel := context.WithCancel(context.Background()) // outlives ctx while guests are protected
	s := &server{listener: l, calls: calls, stop: cancel, done: serving.Done(), conns: map[net.Conn]bool{}}
	s.wg.Go(s.accept)
	return s, nil
}

// close ends all connections and waits for their goroutines. An answer that the loop has given is still written.
func (s *server) close() {
	s.stop()
	_ = s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *server) accept() {
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			select {
			case <-s.done:
				return
			case <-time.After(100 * time.Millisecond): // out of descriptors: let some be closed
				continue
			}
		}
		if !s.admit(conn) {
			_ = conn.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.leave(conn)
			s.serve(conn)
		})
	}
}

func (s *server) admit(conn *net.UnixConn) bool {
	peer, err := sys.PeerOf(conn)
	if err != nil || peer.UID != 0 {
		answer(conn, response{Error: "only root may talk to the guard"})
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped() || len(s.conns) >= maxConns {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *server) stopped() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *server) leave(conn net.Conn) {
	_ = conn.Close()
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
}

// serve answers the lines of one connection. A line that is no request ends it.
func (s *server) serve(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 1024), maxLine)
	for lines.Scan() {
		req, err := parseRequest(lines.Bytes())
		if err != nil {
			answer(conn, refuse(err))
			return
		}
		r, ok := s.ask(req)
		if !ok || !answer(conn, r) {
			return
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		answer(conn, refuse(model.Invalidf("request", "longer than %d bytes", maxLine)))
	}
}

// ask hands a request to the loop and waits for its answer; ok is false when the guard stops.
func (s *server) ask(req request) (r response, ok bool) {
	c := call{req: req, reply: make(chan response, 1)}
	select {
	case s.calls <- c:
	case <-s.done:
		return response{}, false
	}
	select {
	case r = <-c.reply:
		return r, true
	case <-s.done:
	}
	select {
	case r = <-c.reply:
		return r, true
	default:
		return response{}, false
	}
}

func answer(conn net.Conn, r response) bool {
	line, err := json.Marshal(r)
	if err != nil {
		return false
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err = conn.Write(append(line, '\n'))
	return err == nil
}
