package api

import (
	"context"
	"io"
	"net/http"
	"sync"

	"github.com/coder/websocket"
)

// consoleProtocol is the websocket subprotocol of raw bytes, the one that Proxmox VE's consoles use.
const consoleProtocol = "binary"

func (s *server) consoleRoute() route {
	rt := onNode("GET /sauh/nodes/{node}/qemu/{vmid}/console", nil)
	rt.stream = s.console
	return rt
}

// console joins a websocket and a guest's serial port until either side ends.
func (s *server) console(w http.ResponseWriter, r *http.Request, c *call) error {
	id, err := s.owned(r.Context(), c)
	if err != nil {
		return err
	}
	if r.Header.Get("Upgrade") == "" {
		return errorf(http.StatusBadRequest, "the console of VM %d is a websocket: use 'sauh vm console %d'", id, id)
	}
	port, err := s.b.Guests.Console(r.Context(), id)
	if err != nil {
		return err
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{consoleProtocol}})
	if err != nil { // Accept has answered
		_ = port.Close()
		return nil
	}
	// The request's context ends with the connection only while net/http owns it.
	conn := websocket.NetConn(context.WithoutCancel(r.Context()), ws, websocket.MessageBinary)
	join(wsConn{conn, ws}, port)
	return nil
}

// wsConn is a websocket as a stream whose Close says goodbye. NetConn's own Close cancels the
// pending read first, and that may break the connection before the goodbye is sent.
type wsConn struct {
	io.ReadWriter
	ws *websocket.Conn
}

func (c wsConn) Close() error { return c.ws.Close(websocket.StatusNormalClosure, "") }

// join copies both ways until one side ends, closes both and waits for both copies.
func join(a, b io.ReadWriteCloser) {
	var wg sync.WaitGroup
	var once sync.Once
	end := func() {
		once.Do(func() {
			_ = a.Close()
			_ = b.Close()
		})
	}
	for _, p := range [][2]io.ReadWriteCloser{{a, b}, {b, a}} {
		wg.Go(func() {
			defer end()
			_, _ = io.Copy(p[0], p[1])
		})
	}
	wg.Wait()
}
