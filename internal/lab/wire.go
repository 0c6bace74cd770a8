package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
)

// One request and one response a connection, each a line of JSON. The response
// to "exec" carries file descriptors: the namespaces and the cgroup to enter.

type request struct {
	Op        string      `json:"op"` // status, power, link, bmc, chassis, partition, heal, exec
	Node      string      `json:"node,omitempty"`
	Action    PowerAction `json:"action,omitempty"`
	Network   Network     `json:"network,omitempty"`
	Up        bool        `json:"up,omitempty"`
	Partition *Partition  `json:"partition,omitempty"`
	Fault     BMCFault    `json:"fault,omitempty"`
}

type response struct {
	Error  string       `json:"error,omitempty"`
	Kind   string       `json:"kind,omitempty"` // of the error
	Status *Status      `json:"status,omitempty"`
	Power  *PowerResult `json:"power,omitempty"`
}

func errorResponse(err error) response { return response{Error: err.Error(), Kind: model.KindOf(err)} }

func (r response) err() error {
	if r.Error == "" {
		return nil
	}
	return model.FromKind(r.Kind, r.Error)
}

// callTimeout bounds a call: the longest is a power cycle, 30 s to kill and 30 s to boot.
const callTimeout = 70 * time.Second

// call asks the room at dir. The caller closes the files.
func call(ctx context.Context, dir string, req request) (response, []*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", controlPath(dir))
	if err != nil {
		return response{}, nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	line, err := json.Marshal(req)
	if err != nil {
		return response{}, nil, err
	}
	if _, err := c.Write(append(line, '\n')); err != nil {
		return response{}, nil, err
	}
	resp, files, err := receive(c.(*net.UnixConn))
	if err == nil {
		return resp, files, nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return response{}, nil, fmt.Errorf("%s %s: no answer from the room: %w", req.Op, req.Node, err)
}

func receive(c *net.UnixConn) (response, []*os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return response{}, nil, err
	}
	rest, err := io.ReadAll(c)
	if err != nil {
		return response{}, nil, err
	}
	var resp response
	if err := json.Unmarshal(append(buf[:n], rest...), &resp); err != nil {
		return response{}, nil, fmt.Errorf("read answer: %w", err)
	}
	files, err := parseFiles(oob[:oobn])
	return resp, files, err
}

func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("received-%d", fd)))
		}
	}
	return files, nil
}

func send(c *net.UnixConn, resp response, files []*os.File) error {
	line, err := json.Marshal(resp)
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	line = append(line, '\n')
	n, _, err := c.WriteMsgUnix(line, oob, nil)
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}
