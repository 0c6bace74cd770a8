package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/store/etcd"
)

// TestMain fails the package if a QEMU that a test has started lives on.
func TestMain(m *testing.M) {
	mark := fmt.Sprintf("SAUH_TEST_OF=%d", os.Getpid()) // its processes inherit it
	name, value, _ := strings.Cut(mark, "=")
	_ = os.Setenv(name, value)
	etcd.TunePeers()
	code := m.Run()
	left := processesWith(mark)
	for until := time.Now().Add(5 * time.Second); len(left) > 0 && time.Now().Before(until); left = processesWith(mark) {
		time.Sleep(50 * time.Millisecond) // one that is being killed
	}
	if len(left) > 0 {
		fmt.Fprintln(os.Stderr, "the tests have left these processes:", strings.Join(left, "; "))
		code = max(code, 1)
	}
	os.Exit(code)
}

// processesWith lists other processes that have a variable in their environment, by their command lines.
func processesWith(mark string) (found []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(env, []byte(mark+"\x00")) || filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		found = append(found, filepath.Base(dir)+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	return found
}
