//go:debug multipathtcp=1

package etcd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/network"
	"sauh.dev/sauh/internal/store"
)

// The two-network tests run each member as a process in a network namespace of its
// own: this test binary, started again with roleEnv set.
const (
	roleEnv    = "SAUH_ETCD_TEST_ROLE"
	roleSwitch = "switch" // makes the bridges named on its first line, then waits for its input to end
	roleNode   = "node"   // runs a member, obeys commands
)

func TestMain(m *testing.M) {
	TunePeers()
	var err error
	switch os.Getenv(roleEnv) {
	case roleSwitch:
		err = runSwitch()
	case roleNode:
		err = runNode()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runSwitch() error {
	in := bufio.NewScanner(os.Stdin)
	if !in.Scan() {
		return in.Err()
	}
	for bridge := range strings.FieldsSeq(in.Text()) {
		if err := network.EnsureBridge(context.Background(), bridge); err != nil {
			return err
		}
	}
	fmt.Println(`{}`)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// nodeCommand is one line that a node reads.
type nodeCommand struct {
	Start     *Config       // start the member
	Puts      time.Duration // put a key every 10 ms for so long
	Multipath []netip.Addr  // keep these endpoints
	Counters  bool          // answer with the kernel's counters
	Transfer  bool          // hand the leadership over
	Serve     *serving      // answer clients
}

// nodeAnswer is the line that it answers with.
type nodeAnswer struct {
	Error   string
	Leader  string
	Term    uint64
	Puts    []put
	Took    time.Duration
	Netstat map[string]string // MPTcpExt of /proc/net/netstat
}

// put is one write as its writer saw it.
type put struct {
	Start int64 // Unix nanoseconds
	Took  time.Duration
	Error string
}

func runNode() error {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	in.Buffer(nil, 1<<20)
	var s *Server
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	keep := func(addrs []netip.Addr) {
		wg.Go(func() {
			if err := network.KeepMultipath(ctx, addrs, slog.New(slog.DiscardHandler)); err != nil {
				fmt.Fprintln(os.Stderr, "multipath:", err)
			}
		})
	}
	defer func() {
		cancel()
		wg.Wait()
		if s != nil {
			_ = s.Close()
		}
	}()
	for in.Scan() {
		var cmd nodeCommand
		if err := json.Unmarshal(in.Bytes(), &cmd); err != nil {
			return err
		}
		start := time.Now()
		var err error
		var answer nodeAnswer
		switch {
		case cmd.Start != nil:
			s, err = startNode(*cmd.Start)
		case cmd.Puts > 0:
			answer.Puts = writePuts(s, cmd.Puts)
		case cmd.Multipath != nil: // connections made before this have one path only
			if err = network.EnableMultipath(ctx, cmd.Multipath); err == nil {
				keep(cmd.Multipath)
			}
		case cmd.Counters:
			answer.Netstat = readNetstat()
		case cmd.Serve != nil:
			err = serveStore(ctx, &wg, s, *cmd.Serve)
		case cmd.Transfer:
			err = s.TransferLeadership(context.Background())
		}
		if err != nil {
			answer.Error = err.Error()
		}
		answer.Took = time.Since(start)
		if s != nil {
			answer.Leader, answer.Term = s.LeaderName(), s.Term()
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return in.Err()
}

func startNode(cfg Config) (*Server, error) {
	if os.Getenv("SAUH_ETCD_TEST_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", cfg.Name)
	}
	return Start(context.Background(), cfg)
}

// writePuts writes the node's own key every 10 ms, one after the other.
func writePuts(s *Server, d time.Duration) []put {
	key := "puts/" + s.name
	var puts []put
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	revision := int64(-1) // unknown
	for end := time.Now().Add(d); time.Now().Before(end); <-ticker.C {
		p := put{Start: time.Now().UnixNano()}
		start := time.Now()
		var err error
		if revision, err = putOnce(s, key, revision); err != nil {
			p.Error = err.Error()
		}
		p.Took = time.Since(start)
		puts = append(puts, p)
	}
	return puts
}

func putOnce(s *Server, key string, revision int64) (int64, error) {
	if revision < 0 {
		kv, err := s.Get(context.Background(), key, store.Linearizable)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return -1, err
		}
		revision = kv.ModRevision
	}
	revision, err := s.Txn(context.Background(), store.Txn{
		If:   []store.Cond{{Key: key, Revision: revision}},
		Then: []store.Op{store.Put(key, []byte("0123456789"))},
	})
	if err != nil {
		return -1, err
	}
	return revision, nil
}

// readNetstat reads the counters of multipath TCP in this namespace.
func readNetstat() map[string]string {
	text, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return nil
	}
	counters := map[string]string{}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "MPTcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names[1:] {
			if fields[i+1] != "0" {
				counters[name] = fields[i+1]
			}
		}
	}
	return counters
}

// process is a child in a network namespace of its own.
type process struct {
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	mu     sync.Mutex // one command at a time
	exited sync.Once
}

func startProcess(t *testing.T, role, name string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A member's messages come before everything else that this machine tests at the moment; it ends with its input.
	cmd := exec.Command("nice", "-n", "-10", self)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{name: name, cmd: cmd, in: in, out: json.NewDecoder(out)}
	t.Cleanup(p.kill)
	return p
}

// kill ends the process at once, as a power cut does.
func (p *process) kill() {
	p.exited.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}

// do sends one command and waits for its answer.
func (p *process) do(cmd nodeCommand) (nodeAnswer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var answer nodeAnswer
	line, err := json.Marshal(cmd)
	if err != nil {
		return answer, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return answer, err
	}
	if err := p.out.Decode(&answer); err != nil {
		return answer, fmt.Errorf("%s: %w", p.name, err)
	}
	if answer.Error != "" {
		return answer, errors.New(answer.Error)
	}
	return answer, nil
}

func (p *process) must(t *testing.T, cmd nodeCommand) nodeAnswer {
	t.Helper()
	answer, err := p.do(cmd)
	if err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	return answer
}
