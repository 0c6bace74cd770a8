package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/network"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qmp"
)

// byHandDir holds the sockets of the guest that no agent knows.
const byHandDir = "/run/sauh-demo"

// startByHand starts the twin: the same QEMU arguments as guest 100 has, but for what must differ.
func (d *demo) startByHand(ctx context.Context) error {
	node, err := d.machines.where(ctx, d.run.Nodes[0], d.moving.id)
	if err != nil {
		return err
	}
	if _, err := d.personalImage(d.byHand); err != nil {
		return err
	}
	if err := d.launch(ctx, node, false); err != nil {
		return fmt.Errorf("start %s on %s: %w", d.byHand.name(), node, err)
	}
	d.byHandAt = node
	d.place(d.byHand, node, d.clock.now())
	if err := d.startEcho(d.byHand); err != nil {
		return err
	}
	return d.byHand.awaitAnswer(ctx, bootLimit)
}

// twin reads what guest 100 was started from, out of its agent's own notes on node, and changes its identity.
func (d *demo) twin(node string) (qemu.Spec, error) {
	text, err := os.ReadFile(d.machines.path(node, filepath.Join("/run/sauh/qemu", d.moving.id.String()+".json")))
	if err != nil {
		return qemu.Spec{}, fmt.Errorf("read what %s was started from: %w", d.moving.name(), err)
	}
	var state struct {
		Spec qemu.Spec `json:"spec"`
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return qemu.Spec{}, fmt.Errorf("read what %s was started from: %w", d.moving.name(), err)
	}
	s := state.Spec
	if len(s.Disks) != 1 || len(s.NICs) != 1 {
		return s, fmt.Errorf("%s has %d disks and %d network cards instead of one each", d.moving.name(), len(s.Disks), len(s.NICs))
	}
	id := d.byHand.id
	s.VMID, s.Name, s.RunDir, s.Incoming, s.Paused = id, "probe"+id.String(), byHandDir, false, false
	s.Disks[0].Path = filepath.Join("/srv/nas", "probe"+id.String()+".raw")
	s.NICs[0].Tap = qemu.TapName(id, 0)
	s.NICs[0].MAC = "BC:24:11:5A:00:66" // any address of the same maker that nobody else has
	s.UUID, s.VMGenID = otherID(s.UUID), otherID(s.VMGenID)
	return s, nil
}

// otherID changes the last digit of a UUID.
func otherID(id string) string {
	if id == "" {
		return ""
	}
	last := "0"
	if strings.HasSuffix(id, "0") {
		last = "1"
	}
	return id[:len(id)-1] + last
}

// launch runs QEMU on a node, as nobody's guest.
func (d *demo) launch(ctx context.Context, node string, incoming bool) error {
	source := node
	if incoming {
		var err error
		if source, err = d.machines.where(ctx, node, d.moving.id); err != nil {
			return err
		}
	}
	s, err := d.twin(source)
	if err != nil {
		return err
	}
	s.Incoming = incoming
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	cmd := d.room.Exec(ctx, node, "sauh", "lab", "demo", "launch")
	cmd.Stdin = bytes.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Launch runs in a node: it makes the taps of the qemu.Spec that it reads from in, and runs QEMU, which goes
// into the background. It is what a person would do by hand.
func Launch(ctx context.Context, in io.Reader) error {
	var s qemu.Spec
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return fmt.Errorf("read what to launch: %w", err)
	}
	if err := os.MkdirAll(s.RunDir, 0o700); err != nil {
		return err
	}
	for _, n := range s.NICs {
		if err := network.EnsureTap(ctx, n.Tap, n.Bridge, n.MTU); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, qemu.Binary, qemu.Argv(s)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A file, because a pipe would be held open by the process in the background.
	said, err := os.Create(filepath.Join(s.RunDir, s.VMID.String()+".stderr"))
	if err != nil {
		return err
	}
	defer said.Close()
	cmd.Stderr = said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name()) // the exit status is said in any case
		return fmt.Errorf("run QEMU: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// monitorOf opens the QMP socket of the guest by hand on a node.
func (d *demo) monitorOf(ctx context.Context, node string) (*qmp.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s := qemu.Spec{VMID: d.byHand.id, RunDir: byHandDir}
	c, err := qmp.Dial(ctx, d.machines.path(node, s.QMPSocket()))
	if err != nil {
		return nil, fmt.Errorf("reach %s on %s: %w", d.byHand.name(), node, err)
	}
	return c, nil
}

// migrateInfo is the part of query-migrate's answer that is used here.
type migrateInfo struct {
	Status    string `json:"status"`
	Error     string `json:"error-desc"`
	Downtime  int64  `json:"downtime"` // ms
	Addresses []struct {
		Type string `json:"type"`
		Port string `json:"port"`
	} `json:"socket-address"`
}

// moveByHand does what a person with two QMP prompts would: the target resumes the guest by itself
// when it has everything. Bandwidth and downtime limit are Sauh's own.
func (d *demo) moveByHand(ctx context.Context, from, to string) (downtime time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, taskLimit)
	defer cancel()
	if err := d.launch(ctx, to, true); err != nil {
		return 0, fmt.Errorf("start the target: %w", err)
	}
	source, err := d.monitorOf(ctx, from)
	if err != nil {
		return 0, err
	}
	defer func() { _ = source.Close() }()
	target, err := d.monitorOf(ctx, to)
	if err != nil {
		return 0, err
	}
	defer func() { _ = target.Close() }()
	port, err := listenByHand(ctx, target, d.clusterAddress(to))
	if err != nil {
		return 0, fmt.Errorf("let the target listen: %w", err)
	}
	limits := migrate.Defaults()
	params := map[string]any{"max-bandwidth": limits.Bandwidth, "downtime-limit": limits.Downtime.Milliseconds()}
	if err := source.Execute(ctx, "migrate-set-parameters", params, nil); err != nil {
		return 0, err
	}
	if err := source.Execute(ctx, "migrate", channel(d.clusterAddress(to), port), nil); err != nil {
		return 0, err
	}
	info, err := awaitMigrated(ctx, source)
	if err != nil {
		return 0, errors.Join(err, quit(ctx, target))
	}
	d.byHandAt = to
	if err := quit(ctx, source); err != nil {
		return 0, err
	}
	return time.Duration(info.Downtime) * time.Millisecond, awaitRunning(ctx, target)
}

func channel(host, port string) map[string]any {
	addr := map[string]any{"transport": "socket", "type": "inet", "host": host, "port": port}
	return map[string]any{"channels": []any{map[string]any{"channel-type": "main", "addr": addr}}}
}

func listenByHand(ctx context.Context, target *qmp.Conn, host string) (port string, err error) {
	if err := target.Execute(ctx, "migrate-incoming", channel(host, "0"), nil); err != nil {
		return "", err
	}
	var i migrateInfo
	if err := target.Execute(ctx, "query-migrate", nil, &i); err != nil {
		return "", err
	}
	for _, a := range i.Addresses {
		if a.Type == "inet" {
			return a.Port, nil
		}
	}
	return "", errors.New("QEMU names no port")
}

// lookEvery is often enough for a move of about a second.
const lookEvery = 50 * time.Millisecond

func awaitMigrated(ctx context.Context, source *qmp.Conn) (i migrateInfo, err error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := source.Execute(ctx, "query-migrate", nil, &i); err != nil {
			return i, err
		}
		switch i.Status {
		case "completed":
			return i, nil
		case "failed", "cancelled":
			return i, fmt.Errorf("the migration %s: %s", i.Status, i.Error)
		}
		select {
		case <-ctx.Done():
			return i, ctx.Err()
		case <-tick.C:
		}
	}
}

func awaitRunning(ctx context.Context, target *qmp.Conn) error {
	return await(ctx, "the guest on the target", taskLimit, lookEvery, func(ctx context.Context) error {
		var s struct {
			Status string `json:"status"`
		}
		err := target.Execute(ctx, "query-status", nil, &s)
		if err == nil && s.Status != "running" {
			err = fmt.Errorf("it is %s", s.Status)
		}
		return err
	})
}

// quit ends a QEMU and waits until its monitor is closed.
func quit(ctx context.Context, c *qmp.Conn) error {
	err := c.Execute(ctx, "quit", nil, nil)
	select {
	case <-c.Done():
		return nil
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}

// endByHand ends the twin: the faults that follow are no business of its.
func (d *demo) endByHand(ctx context.Context) error {
	_ = d.byHand.ledger.stop()
	c, err := d.monitorOf(ctx, d.byHandAt)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	d.place(d.byHand, "", d.clock.now())
	return quit(ctx, c)
}

// clusterAddress is where Sauh's own migrations go.
func (d *demo) clusterAddress(node string) string {
	for i := range d.run.Nodes {
		if lab.NodeName(i+1) == node {
			return lab.ClusterAddress(i + 1)
		}
	}
	return node
}
