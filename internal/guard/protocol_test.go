package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

func itoa(n int) string { return strconv.Itoa(n) }

// send writes text to the guard's socket and returns the lines of its answer.
func send(t *testing.T, socket, text string) []response {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	must(t, err)
	defer conn.Close()
	go func() { // the guard may stop reading before the end
		_, _ = io.WriteString(conn, text)
		_ = conn.(*net.UnixConn).CloseWrite()
	}()
	var answers []response
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r response
		must(t, json.Unmarshal(lines.Bytes(), &r))
		answers = append(answers, r)
	}
	return answers
}

func badRequests() []string {
	return []string{
		"\n", "hello\n", "{\n", "[]\n", "null\n", "3\n", `"renew"` + "\n", "\x00\xff\xfe\n", "{}\n",
		`{"op":"reboot"}` + "\n",
		`{"op":"protect"}` + "\n",
		`{"op":"protect","group":[]}` + "\n",
		`{"op":"unprotect"}` + "\n",
		`{"op":"unprotect","name":"../../system.slice"}` + "\n",
		`{"op":"renew","epoch":-1}` + "\n",
		`{"op":"renew","epoch":1e99}` + "\n",
		`{"op":"renew","epoch":1,"deadline_ns":9223372036854775807}` + "\n",
		`{"op":"protect","group":{"name":"a/b","epoch":1,"on_deadline":"freeze"}}` + "\n",
		strings.Repeat("x", maxLine+10) + "\n",
		`{"op":"protect","group":{"name":"` + strings.Repeat("9", 60000) + `"}}` + "\n",
	}
}

func TestBadInputIsRefusedAndDisturbsNothing(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	file, _ := startGuest(t, r.root, "100")
	for _, text := range badRequests() {
		answers := send(t, r.client.socket, text)
		if len(answers) != 1 || answers[0].OK || answers[0].Kind != "invalid" {
			t.Errorf("%.60q was answered with %+v", text, answers)
		}
		r.renew(1)
	}
	if got := r.state("100"); got != lease.Running {
		t.Errorf("the guest is %s", got)
	}
	grows(t, file)
}

func TestOneConnectionCarriesManyRequests(t *testing.T) {
	r := startRig(t)
	answers := send(t, r.client.socket, strings.Repeat(`{"op":"status"}`+"\n", 50))
	if len(answers) != 50 || !answers[49].OK || answers[49].Status == nil {
		t.Errorf("50 requests got %d answers", len(answers))
	}
}

func TestAClientThatNeverReadsOrNeverWritesHoldsNobodyUp(t *testing.T) {
	r := startRig(t)
	for range maxConns + 10 {
		conn, err := net.Dial("unix", r.client.socket)
		must(t, err)
		defer conn.Close()
		_, _ = io.WriteString(conn, strings.Repeat(`{"op":"status"}`+"\n", 20))
	}
	feeds := r.dog.count()
	eventually(t, "fed all the same", func() bool { return r.dog.count() > feeds+3 })
}

func TestAClientThatAsksWithoutEndKeepsTheGuardFromNothing(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	startGuest(t, r.root, "100")
	ctx, cancel := context.WithTimeout(t.Context(), shortParams().Lease-500*time.Millisecond)
	defer cancel()
	feeds := r.dog.count()
	for ctx.Err() == nil {
		_, _ = r.client.Status(ctx)
	}
	if got := r.state("100"); got != lease.Frozen {
		t.Errorf("just before the deadline the guest is %s", got)
	}
	if r.dog.count() < feeds+3 {
		t.Errorf("fed %d times meanwhile", r.dog.count()-feeds)
	}
}

func TestOnlyRootMayTalkToTheGuard(t *testing.T) {
	r := startRig(t)
	socket := r.client.socket
	for dir := filepath.Dir(socket); strings.HasPrefix(dir, os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Chmod(socket, 0o666)) // what SO_PEERCRED is for
	answer := make(chan string)
	go func() {
		// Only this thread becomes another user, and it ends with the goroutine, being locked to it.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
			answer <- errno.Error()
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
		buf := make([]byte, 1000)
		n := 0
		if err == nil {
			n, err = unix.Read(fd, buf)
		}
		_ = unix.Close(fd)
		if err != nil {
			answer <- err.Error()
			return
		}
		answer <- string(buf[:n])
	}()
	if got := <-answer; !strings.Contains(got, "only root") {
		t.Errorf("another user was answered with %q", got)
	}
}

func TestErrorsKeepTheirKindAcrossTheSocket(t *testing.T) {
	for _, kind := range []error{model.ErrExists, model.ErrBusy, model.ErrUnavailable, model.ErrConflict, model.ErrInvalid} {
		err := refuse(model.Errorf(kind, "a sentence")).err()
		if !errors.Is(err, kind) || err.Error() != "a sentence" {
			t.Errorf("%v came back as %v", kind, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, text := range badRequests() {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"op":"protect","group":{"name":"100","epoch":1,"on_deadline":"freeze","pills":["/a"]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		req, err := parseRequest(line)
		if err != nil {
			if !errors.Is(err, model.ErrInvalid) {
				t.Errorf("refused without saying that it is invalid: %v", err)
			}
			return
		}
		if req.Op == "protect" && req.Group == nil || req.Op == "unprotect" && req.Name == "" {
			t.Errorf("accepted without what it needs: %+v", req)
		}
	})
}
