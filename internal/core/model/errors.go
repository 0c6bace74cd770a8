package model

import (
	"errors"
	"fmt"
)

// Sentinels that callers branch on; each stands for one kind of answer to a person.
var (
	// ErrNotFound: the thing named does not exist.
	ErrNotFound = errors.New("does not exist")
	// ErrExists: the name or id is taken.
	ErrExists = errors.New("already exists")
	// ErrBusy: the thing is locked, running or migrating; try again later.
	ErrBusy = errors.New("busy")
	// ErrNoQuorum: the store has no majority, so nothing can be written.
	ErrNoQuorum = errors.New("no quorum")
	// ErrUnavailable: a node or a storage does not answer.
	ErrUnavailable = errors.New("not available")
	// ErrConflict: somebody else changed it first.
	ErrConflict = errors.New("changed by someone else")
	// ErrInvalid: a parameter or a configuration line is wrong; see InvalidError.
	ErrInvalid = errors.New("invalid")
)

// InvalidError names the parameter that is wrong and says what is allowed.
type InvalidError struct {
	Param string // name of the parameter or configuration key
	Line  int    // line of the configuration file, 0 if it is no file
	Msg   string
}

func (e *InvalidError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("line %d: %s: %s", e.Line, e.Param, e.Msg)
	}
	return e.Param + ": " + e.Msg
}

// Is makes errors.Is(err, ErrInvalid) true.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// Invalidf builds an InvalidError.
func Invalidf(param, format string, args ...any) error {
	return &InvalidError{Param: param, Msg: fmt.Sprintf(format, args...)}
}

// kindError carries a sentence for a person and one of the sentinels.
type kindError struct {
	kind error
	msg  string
}

func (e *kindError) Error() string        { return e.msg }
func (e *kindError) Is(target error) bool { return target == e.kind }

// Errorf builds an error whose text is exactly the sentence given and which
// errors.Is recognises as kind, one of the sentinels above.
func Errorf(kind error, format string, args ...any) error {
	return &kindError{kind: kind, msg: fmt.Sprintf(format, args...)}
}

// kinds are the sentinels' names in messages between processes.
func kinds() map[string]error {
	return map[string]error{
		"not-found": ErrNotFound, "exists": ErrExists, "busy": ErrBusy, "no-quorum": ErrNoQuorum,
		"unavailable": ErrUnavailable, "conflict": ErrConflict, "invalid": ErrInvalid,
	}
}

// KindOf names the sentinel that err is, for a message to another process; "" if it is none.
func KindOf(err error) string {
	for name, kind := range kinds() {
		if errors.Is(err, kind) {
			return name
		}
	}
	return ""
}

// FromKind is the other side of KindOf: the error with that text and of that kind, of none if the name is unknown.
func FromKind(name, text string) error {
	if kind, ok := kinds()[name]; ok {
		return Errorf(kind, "%s", text)
	}
	return errors.New(text)
}
