package storage

import (
	"errors"
	"strings"
	"syscall"

	"sauh.dev/sauh/internal/core/model"
)

// ErrAway says that this node does not reach the storage at the moment, whatever the volume: it does not answer, is not mounted, or its connection
// is broken. Each such error is ErrUnavailable as well. It is no fault of the guest whose volume it is: later, or on another node, it may be there.
var ErrAway = errors.New("the storage is away")

type awayError struct{ error }

func (e *awayError) Unwrap() error        { return e.error }
func (e *awayError) Is(target error) bool { return target == ErrAway }

// Away is model.Errorf for an ErrAway.
func Away(format string, args ...any) error {
	return &awayError{model.Errorf(ErrUnavailable, format, args...)}
}

// IsAway says whether a system call's error speaks of the storage and not of the file.
func IsAway(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && saysAway(errno)
}

// SaysAway is IsAway for the text that another program prints of such an error.
func SaysAway(text string) bool {
	for errno := syscall.Errno(1); errno < 134; errno++ { // all that Linux has
		if saysAway(errno) && strings.EqualFold(text, errno.Error()) {
			return true
		}
	}
	return false
}

func saysAway(errno syscall.Errno) bool {
	switch errno {
	case syscall.EIO, syscall.ENOTCONN, syscall.ESTALE, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
		syscall.ENETDOWN, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.ESHUTDOWN, syscall.EREMOTEIO, syscall.ENXIO, syscall.ENODEV:
		return true
	default:
		return false
	}
}
