package qga

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxRequest bounds one request in bytes; a real agent stops at 64 MiB, and nobody who has this one writes files with it.
const maxRequest = 4 << 20

// Handler carries one command out. nil is answered with an empty object; an error of type *Error as it is, any other as a
// GenericError with its text. ErrNoAnswer is answered with nothing at all.
type Handler func(args json.RawMessage) (any, error)

// ErrNoAnswer is what the handler of a command returns that says nothing when it succeeds.
var ErrNoAnswer = errors.New("no answer")

// Server is the guest's side: it answers synchronizations, guest-ping and guest-info by itself and everything else by its handlers.
type Server struct {
	Version  string
	Handlers map[string]Handler
}

// Serve answers what it reads from rw until that ends; the error is rw's. The end of the input is nil. It keeps what was read in
// part nowhere, so each connection of the port begins anew.
func (s *Server) Serve(rw io.ReadWriter) error {
	in := bufio.NewReader(rw)
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		// The host's delimiter ends whatever half a request came before it.
		if i := bytes.LastIndexByte(part, delimiter); i >= 0 {
			line, part = line[:0], part[i+1:]
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) && len(line) <= maxRequest:
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("a request is longer than %d bytes", maxRequest)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if answer := s.answer(line); answer != nil {
			if _, err := rw.Write(answer); err != nil {
				return err
			}
		}
		line = line[:0]
	}
}

// answer is the whole line that a request is answered with, nil for none.
func (s *Server) answer(line []byte) []byte {
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return nil
	}
	var r struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return encode(nil, &Error{"GenericError", "Invalid JSON syntax"})
	}
	value, err := s.execute(r.Execute, r.Arguments)
	if errors.Is(err, ErrNoAnswer) {
		return nil
	}
	answer := encode(value, err)
	if r.Execute == "guest-sync-delimited" {
		answer = append([]byte{delimiter}, answer...)
	}
	return answer
}

func (s *Server) execute(command string, args json.RawMessage) (any, error) {
	if h := s.Handlers[command]; h != nil {
		return h(args)
	}
	switch command {
	case "guest-sync", "guest-sync-delimited":
		var a struct {
			ID *int64 `json:"id"`
		}
		if err := json.Unmarshal(args, &a); err != nil || a.ID == nil {
			return nil, &Error{"GenericError", "Parameter 'id' is missing"}
		}
		return *a.ID, nil
	case "guest-ping":
		return nil, nil
	case "guest-info":
		return s.info(), nil
	}
	return nil, &Error{"CommandNotFound", "The command " + command + " has not been found"}
}

func (s *Server) info() Info {
	names := []string{"guest-sync", "guest-sync-delimited", "guest-ping", "guest-info"}
	for name := range s.Handlers {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	i := Info{Version: s.Version}
	for _, name := range names {
		i.Commands = append(i.Commands, Command{name, true, name != "guest-shutdown"})
	}
	return i
}

func encode(value any, err error) []byte {
	m := map[string]any{"return": value}
	var e *Error
	switch {
	case errors.As(err, &e):
		m = map[string]any{"error": e}
	case err != nil:
		m = map[string]any{"error": &Error{"GenericError", err.Error()}}
	case value == nil:
		m["return"] = struct{}{}
	}
	line, err := json.Marshal(m)
	if err != nil {
		line, _ = json.Marshal(map[string]any{"error": &Error{"GenericError", err.Error()}})
	}
	return append(line, '\n')
}
