package qmptest

import (
	"encoding/json"
	"net"
	"strconv"
	"time"

	"sauh.dev/sauh/internal/qmp"
)

// migration is what query-migrate tells.
type migration struct {
	status    string
	reason    string
	rounds    int
	remaining int64
	sent      int64
	cancelled bool
}

const totalRAM = 256 << 20

// execute is the built-in behaviour of each command.
func (q *QEMU) execute(command string, args json.RawMessage) (any, error) {
	switch command {
	case "qmp_capabilities", "announce-self", "system_powerdown", "quit", "qom-set":
		return nil, nil
	case "query-status":
		q.room.mu.Lock()
		defer q.room.mu.Unlock()
		return map[string]any{"status": q.status, "running": q.status == "running"}, nil
	case "query-version":
		return map[string]any{"qemu": map[string]int{"major": 10, "minor": 0, "micro": 2}, "package": "fake"}, nil
	case "qom-get":
		return true, nil
	case "cont":
		return nil, q.cont()
	case "stop":
		return nil, q.stop()
	case "migrate-set-capabilities":
		return nil, q.setCapabilities(args)
	case "migrate-set-parameters":
		return nil, q.setParameters(args)
	case "query-migrate":
		return q.queryMigrate(), nil
	case "migrate-incoming":
		return nil, q.listen(args)
	case "migrate":
		return nil, q.migrate(args)
	case "migrate_cancel":
		q.room.mu.Lock()
		defer q.room.mu.Unlock()
		q.mig.cancelled = true
		return nil, nil
	}
	return nil, &qmp.Error{Class: "CommandNotFound", Desc: "The command " + command + " has not been found"}
}

func (q *QEMU) cont() error {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	switch q.status {
	case "running":
		return nil
	case "inmigrate":
		q.autostart = true
		return nil
	case "finish-migrate":
		return refuse("Migration is not finalized yet")
	}
	if err := q.activateLocked(); err != nil {
		return err
	}
	q.setLocked("running")
	q.eventLocked("RESUME", nil)
	return nil
}

// activateLocked takes the image locks, as an activation of the block devices does.
func (q *QEMU) activateLocked() error {
	for _, o := range q.room.qemus {
		if o != q && o.locked && !o.dead {
			return refuse("Failed to get \"write\" lock: Is another process using the image?")
		}
	}
	q.locked = true
	return nil
}

func (q *QEMU) stop() error {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	if q.status == "running" {
		q.setLocked("paused")
		q.eventLocked("STOP", nil)
	}
	return nil
}

func (q *QEMU) setCapabilities(args json.RawMessage) error {
	var a struct {
		Capabilities []struct {
			Capability string `json:"capability"`
			State      bool   `json:"state"`
		} `json:"capabilities"`
	}
	if err := parse(args, &a); err != nil {
		return err
	}
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	for _, c := range a.Capabilities {
		q.caps[c.Capability] = c.State
	}
	return nil
}

func (q *QEMU) setParameters(args json.RawMessage) error {
	var a map[string]any
	if err := parse(args, &a); err != nil {
		return err
	}
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	for k, v := range a {
		q.params[k] = v
	}
	return nil
}

// Parameter returns a migration parameter as it was last set.
func (q *QEMU) Parameter(name string) any {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	return q.params[name]
}

func (q *QEMU) queryMigrate() any {
	q.room.mu.Lock()
	defer q.room.mu.Unlock()
	m := map[string]any{}
	if q.mig.status != "" {
		m["status"] = q.mig.status
		m["ram"] = map[string]any{
			"total": totalRAM, "remaining": q.mig.remaining, "transferred": q.mig.sent,
			"dirty-sync-count": q.mig.rounds, "dirty-pages-rate": 100, "page-size": 4096, "mbps": 800.0,
		}
		m["expected-downtime"] = 20
		m["total-time"] = 100
	}
	if q.mig.reason != "" {
		m["error-desc"] = q.mig.reason
	}
	if q.address != "" {
		host, port, _ := net.SplitHostPort(q.address)
		m["socket-address"] = []any{map[string]any{"type": "inet", "host": host, "port": port}}
	}
	return m
}

type channels struct {
	Channels []struct {
		Addr struct {
			Host string `json:"host"`
			Port string `json:"port"`
		} `json:"addr"`
	} `json:"channels"`
}

func (c channels) address(port func() string) (string, error) {
	if len(c.Channels) != 1 {
		return "", refuse("Channel list must have exactly one entry")
	}
	p := c.Channels[0].Addr.Port
	if p == "0" {
		p = port()
	}
	return net.JoinHostPort(c.Channels[0].Addr.Host, p), nil
}

func (q *QEMU) listen(args json.RawMessage) error {
	var a channels
	if err := parse(args, &a); err != nil {
		return err
	}
	r := q.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.status != "inmigrate" {
		return refuse("'-incoming' was not specified on the command line")
	}
	if q.address != "" {
		return refuse("The incoming migration has already been started")
	}
	addr, err := a.address(func() string { r.nextPort++; return strconv.Itoa(r.nextPort) })
	if err != nil {
		return err
	}
	q.address = addr
	r.listening[addr] = q
	q.migrationLocked("setup")
	return nil
}

func (q *QEMU) migrationLocked(status string) {
	q.mig.status = status
	if q.caps["events"] {
		q.eventLocked("MIGRATION", map[string]string{"status": status})
	}
}

func (q *QEMU) migrate(args json.RawMessage) error {
	var a channels
	if err := parse(args, &a); err != nil {
		return err
	}
	addr, err := a.address(func() string { return "0" })
	if err != nil {
		return err
	}
	r := q.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.mig.status == "active" || q.mig.status == "setup" {
		return refuse("There's a migration process in progress")
	}
	q.mig = migration{}
	q.migrationLocked("setup")
	r.wg.Add(1)
	go q.transfer(r.listening[addr])
	return nil
}

// transfer is the source's migration thread.
func (q *QEMU) transfer(target *QEMU) {
	r := q.room
	defer r.wg.Done()
	q.sleep(time.Millisecond)
	if !q.connect(target) {
		return
	}
	r.at(q, "migrating")
	for {
		r.mu.Lock()
		pace := r.pace
		r.mu.Unlock()
		q.sleep(pace.Round)
		if again := q.round(target, pace); !again {
			break
		}
	}
	r.at(q, "stopped")
	r.mu.Lock()
	pace := r.pace
	r.mu.Unlock()
	q.sleep(pace.Switch)
	if q.lastByte(target) {
		q.complete(target, pace)
	}
}

// sleep waits, but not longer than the process lives.
func (q *QEMU) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-q.quit:
	}
}

func (q *QEMU) connect(target *QEMU) bool {
	r := q.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if target == nil || q.brokenLocked(target) {
		q.failLocked(target, "Failed to connect: Connection refused")
		return false
	}
	q.migrationLocked("active")
	target.migrationLocked("active")
	return true
}

// brokenLocked reports whether nothing can go over from q any more.
func (q *QEMU) brokenLocked(target *QEMU) bool {
	return q.dead || target.dead || q.room.cut || q.mig.cancelled
}

// failLocked ends the migration on both sides. The source resumes by itself if its
// guest ran, which is what QEMU does and nobody can forbid.
func (q *QEMU) failLocked(target *QEMU, reason string) {
	if !q.dead {
		status := "failed"
		if q.mig.cancelled {
			status, reason = "cancelled", ""
		}
		q.mig.reason = reason
		if q.status == "finish-migrate" && q.wasRunning {
			q.locked = true
			q.setLocked("running")
			q.eventLocked("RESUME", nil)
		}
		q.migrationLocked(status)
	}
	if target != nil && !target.dead && target.mig.status == "active" {
		target.mig.reason = "load of migration failed: Input/output error"
		target.migrationLocked("failed")
	}
}

func (q *QEMU) round(target *QEMU, pace Pace) (again bool) {
	r := q.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.brokenLocked(target) {
		q.failLocked(target, "Unable to write to socket: Connection reset by peer")
		return false
	}
	q.mig.rounds++
	q.mig.sent += totalRAM / int64(1+q.mig.rounds)
	q.mig.remaining = totalRAM / int64(1+q.mig.rounds)
	if q.mig.rounds == 1 && q.caps["events"] {
		q.eventLocked("MIGRATION_PASS", map[string]int{"pass": 1})
	}
	limit, _ := q.params["downtime-limit"].(float64)
	if q.mig.rounds < pace.Rounds || time.Duration(limit)*time.Millisecond < pace.Downtime {
		return true
	}
	q.wasRunning = q.status == "running"
	q.setLocked("finish-migrate")
	if q.wasRunning {
		q.eventLocked("STOP", nil)
	}
	q.migrationLocked("device")
	q.locked = false // QEMU gives its images up before the last byte
	return false
}

// lastByte is the instant at which the last byte is accepted: after it the
// source cannot fail any more and the target has everything.
func (q *QEMU) lastByte(target *QEMU) bool {
	r := q.room
	r.mu.Lock()
	if q.mig.status != "device" {
		r.mu.Unlock()
		return false
	}
	if q.brokenLocked(target) {
		q.failLocked(target, "Unable to write to socket: Connection reset by peer")
		r.mu.Unlock()
		return false
	}
	target.memory = q.memory
	r.mu.Unlock()
	r.at(q, "received")
	return true
}

func (q *QEMU) complete(target *QEMU, pace Pace) {
	target.sleep(pace.Load)
	if pace.Slack < 0 {
		q.completeSource()
		q.sleep(-pace.Slack)
		target.completeTarget(q)
		return
	}
	target.completeTarget(q)
	target.sleep(pace.Slack)
	q.completeSource()
}

func (q *QEMU) completeSource() {
	q.room.mu.Lock()
	if q.dead {
		q.room.mu.Unlock()
		return
	}
	if q.mig.cancelled {
		// A cancel that comes between the last byte and here makes QEMU resume, although the target has everything.
		q.failLocked(nil, "")
	} else {
		q.setLocked("postmigrate")
		q.mig.remaining = 0
		q.migrationLocked("completed")
	}
	q.room.mu.Unlock()
	q.room.at(q, "source completed")
}

func (q *QEMU) completeTarget(source *QEMU) {
	q.room.mu.Lock()
	if q.dead {
		q.room.mu.Unlock()
		return
	}
	if !q.caps["late-block-activate"] || q.autostart {
		q.locked = true
	}
	if q.autostart && source.wasRunning {
		q.setLocked("running")
	} else {
		q.setLocked("paused")
	}
	q.migrationLocked("completed")
	q.room.mu.Unlock()
	q.room.at(q, "target completed")
}
