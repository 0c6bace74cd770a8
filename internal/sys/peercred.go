package sys

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Peer is who opened the other end of a unix socket, as the kernel recorded it.
type Peer struct {
	PID int
	UID int
}

// PeerOf returns the peer of a connected unix socket.
func PeerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("read peer of socket: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("read peer of socket: %w", err)
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("read peer of socket: %w", credErr)
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid)}, nil
}
