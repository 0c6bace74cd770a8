package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// KindHeader carries the kind of an error, so that Sauh's own client can tell one
// status 500 from another. Its values are those of [KindOf].
const KindHeader = "Sauh-Error"

// StatusUnreachable is the status of a request whose node does not answer, as in Proxmox VE.
const StatusUnreachable = 595

// noQuorumText begins with the words known from Proxmox VE.
const noQuorumText = "cluster not ready - no quorum? Nothing can be changed until more than half of the votes are online; see 'sauh cluster status'"

// badParams is the message of every error that has its details in `errors`.
const badParams = "Parameter verification failed."

// apiError is an error with everything that goes over the wire.
type apiError struct {
	status  int
	message string
	errors  map[string]string // parameter → what is wrong with it
	kind    string            // see KindOf
	noBody  bool              // only the phrase, as Proxmox VE does for tickets
}

func (e *apiError) Error() string { return e.message }

// Is lets callers inside the package ask for the sentinel that e stands for.
func (e *apiError) Is(target error) bool { return e.kind != "" && ErrorOfKind(e.kind) == target }

// phrase is the first line of the message, fit for a status line.
func (e *apiError) phrase() string {
	line, _, _ := strings.Cut(e.message, "\n")
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, line)
	return strings.TrimSpace(clean)
}

func (e *apiError) body() []byte {
	if e.noBody {
		return nil
	}
	m := map[string]any{"data": nil, "message": strings.TrimRight(e.message, "\n") + "\n"}
	if len(e.errors) > 0 {
		m["errors"] = e.errors
	}
	b, err := marshal(m)
	if err != nil { // strings always marshal
		panic(err)
	}
	return b
}

func errorf(status int, format string, args ...any) *apiError {
	return &apiError{status: status, message: fmt.Sprintf(format, args...)}
}

// notFoundf is a thing that does not exist: status 500 with the words that clients know.
func notFoundf(format string, args ...any) *apiError {
	e := errorf(http.StatusInternalServerError, format, args...)
	e.kind = KindOf(model.ErrNotFound)
	return e
}

func existsf(format string, args ...any) *apiError {
	e := errorf(http.StatusInternalServerError, format, args...)
	e.kind = KindOf(model.ErrExists)
	return e
}

func invalid(errs map[string]string) *apiError {
	return &apiError{status: http.StatusBadRequest, message: badParams, errors: errs, kind: KindOf(model.ErrInvalid)}
}

func invalidParam(name, format string, args ...any) *apiError {
	return invalid(map[string]string{name: fmt.Sprintf(format, args...)})
}

// KindOf names the sentinel of core/model that err is, for the header; "" if it is none.
func KindOf(err error) string {
	for _, k := range kinds() {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return ""
}

// ErrorOfKind is the inverse of KindOf; nil for an unknown name.
func ErrorOfKind(name string) error {
	for _, k := range kinds() {
		if k.name == name {
			return k.err
		}
	}
	return nil
}

type kind struct {
	name string
	err  error
}

func kinds() []kind {
	return []kind{
		{"invalid", model.ErrInvalid},
		{"not-found", model.ErrNotFound},
		{"exists", model.ErrExists},
		{"no-quorum", model.ErrNoQuorum},
		{"conflict", model.ErrConflict},
		{"busy", model.ErrBusy},
		{"unavailable", model.ErrUnavailable},
	}
}

// asAPIError gives any error of the backend its form on the wire.
func asAPIError(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	var inv *model.InvalidError
	if errors.As(err, &inv) {
		return fromInvalid(inv)
	}
	out := errorf(http.StatusInternalServerError, "%s", err.Error())
	out.kind = KindOf(err)
	switch {
	case errors.Is(err, model.ErrInvalid):
		out.status = http.StatusBadRequest
	case errors.Is(err, model.ErrNoQuorum):
		out.message = noQuorumText
	case errors.Is(err, context.DeadlineExceeded):
		out.message = "got timeout: " + err.Error()
	}
	return out
}

func fromInvalid(inv *model.InvalidError) *apiError {
	name, msg := inv.Param, inv.Msg
	if name == "" {
		e := errorf(http.StatusBadRequest, "%s", msg)
		e.kind = KindOf(model.ErrInvalid)
		return e
	}
	if inv.Line > 0 {
		msg = fmt.Sprintf("line %d: %s", inv.Line, msg)
	}
	return invalidParam(name, "%s", msg)
}
