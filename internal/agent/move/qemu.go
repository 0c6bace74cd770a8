package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
)

// monitor gives each QMP command used here a name and a deadline.
type monitor struct {
	*qmp.Conn
}

func (m monitor) do(ctx context.Context, command string, args, out any) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	return m.Execute(ctx, command, args, out)
}

func (m monitor) status(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.do(ctx, "query-status", nil, &s)
	return s.Status, err
}

// info is query-migrate's answer.
type info struct {
	Status string `json:"status"`
	Error  string `json:"error-desc"`
	RAM    struct {
		Total       int64   `json:"total"`
		Remaining   int64   `json:"remaining"`
		Transferred int64   `json:"transferred"`
		Rounds      int     `json:"dirty-sync-count"`
		DirtyPages  int64   `json:"dirty-pages-rate"` // a second
		PageSize    int64   `json:"page-size"`
		Mbps        float64 `json:"mbps"`
	} `json:"ram"`
	ExpectedDowntime int64 `json:"expected-downtime"` // ms
	Downtime         int64 `json:"downtime"`
	TotalTime        int64 `json:"total-time"`
	Addresses        []struct {
		Type string `json:"type"`
		Host string `json:"host"`
		Port string `json:"port"`
	} `json:"socket-address"`
}

func (m monitor) info(ctx context.Context) (info, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var i info
	err := m.Execute(ctx, "query-migrate", nil, &i)
	return i, err
}

func (i info) progress(p migrate.Phase) model.MigrationProgress {
	return model.MigrationProgress{
		Phase:              string(p),
		Round:              i.RAM.Rounds,
		TransferredBytes:   i.RAM.Transferred,
		RemainingBytes:     i.RAM.Remaining,
		TotalBytes:         i.RAM.Total,
		DirtyBytesPerSec:   i.RAM.DirtyPages * i.RAM.PageSize,
		BytesPerSec:        int64(i.RAM.Mbps * 1e6 / 8),
		ExpectedDowntimeMS: i.ExpectedDowntime,
		DowntimeMS:         i.Downtime,
		TotalMS:            i.TotalTime,
	}
}

// setUp prepares either side. After the stream's end mark QEMU would send a description
// of it, which the target may miss without noticing while the source fails and resumes: without
// the description, the end mark is the last byte, and a target that has it has a source that cannot fail.
func (m monitor) setUp(ctx context.Context, capabilities ...string) error {
	err := m.do(ctx, "qom-set", map[string]any{"path": "/machine", "property": "suppress-vmdesc", "value": true}, nil)
	if err != nil {
		return err
	}
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	// No return-path: with it the source could fail, and resume by itself, after the target has everything.
	list := []capability{{"return-path", false}}
	for _, c := range capabilities {
		list = append(list, capability{c, true})
	}
	return m.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil)
}

// channels is the argument of migrate and migrate-incoming for one TCP or MPTCP connection.
func channels(host, port string, mptcp bool) map[string]any {
	addr := map[string]any{"transport": "socket", "type": "inet", "host": host, "port": port}
	if mptcp {
		addr["mptcp"] = true
	}
	return map[string]any{"channels": []any{map[string]any{"channel-type": "main", "addr": addr}}}
}

// listenAt tries multipath TCP if wanted, then plain TCP where QEMU or the kernel lacks it, and
// both without the argument that QEMU before 9.1 does not know. It reports which one was taken.
func (m monitor) listenAt(ctx context.Context, host string, wanted bool) (mptcp bool, err error) {
	for _, try := range []struct{ mptcp, stay bool }{{true, true}, {false, true}, {true, false}, {false, false}} {
		if try.mptcp && !wanted {
			continue
		}
		args := channels(host, "0", try.mptcp)
		if try.stay {
			args["exit-on-error"] = false // a process that stays after a failure can say why
		}
		err = m.do(ctx, "migrate-incoming", args, nil)
		var refusal *qmp.Error
		if !errors.As(err, &refusal) {
			return try.mptcp, err
		}
	}
	return false, err
}

// listen has a process that waits for a guest listen at host and returns the port.
func (m monitor) listen(ctx context.Context, host string, wanted bool) (PrepareAnswer, error) {
	// Late activation: the images are taken, and locked, by cont, that is after the guest changed hands.
	if err := m.setUp(ctx, "events", "late-block-activate"); err != nil {
		return PrepareAnswer{}, err
	}
	mptcp, err := m.listenAt(ctx, host, wanted)
	if err != nil {
		return PrepareAnswer{}, err
	}
	i, err := m.info(ctx)
	if err != nil {
		return PrepareAnswer{}, err
	}
	for _, a := range i.Addresses {
		if a.Type == "inet" {
			return PrepareAnswer{Host: host, Port: a.Port, MPTCP: mptcp}, nil
		}
	}
	return PrepareAnswer{}, fmt.Errorf("QMP query-migrate: QEMU names no port to connect to")
}

// transfer begins to copy to where the target listens.
func (m monitor) transfer(ctx context.Context, to PrepareAnswer, how migrate.Transfer) error {
	if err := m.setUp(ctx, "events"); err != nil {
		return err
	}
	params := map[string]any{"max-bandwidth": how.Bandwidth, "downtime-limit": how.Downtime.Milliseconds()}
	if err := m.do(ctx, "migrate-set-parameters", params, nil); err != nil {
		return err
	}
	return m.do(ctx, "migrate", channels(to.Host, to.Port, to.MPTCP), nil)
}

func (m monitor) setDowntime(ctx context.Context, d time.Duration) error {
	return m.do(ctx, "migrate-set-parameters", map[string]any{"downtime-limit": d.Milliseconds()}, nil)
}

// brake lets the copy go on so slowly that the rest never fits into the limit.
func (m monitor) brake(ctx context.Context) error {
	return m.do(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 4096, "downtime-limit": 0}, nil)
}

func (m monitor) cont(ctx context.Context) error { return m.do(ctx, "cont", nil, nil) }

// announce has the guest's network cards tell the switches where they are: at once and, should
// a frame get lost, four more times within a second.
func (m monitor) announce(ctx context.Context) error {
	return m.do(ctx, "announce-self", map[string]int{"initial": 50, "max": 550, "rounds": 5, "step": 100}, nil)
}

// translate turns QEMU's events into the machines'; ok is false for those that concern nobody here.
func translate(ev qmp.Event) (_ migrate.Event, ok bool) {
	switch ev.Name {
	case "STOP":
		return migrate.Stopped{}, true
	case "MIGRATION":
		var d struct {
			Status string `json:"status"`
		}
		if json.Unmarshal(ev.Data, &d) != nil {
			return nil, false
		}
		return migrate.Migration{Status: d.Status}, true
	}
	return nil, false
}
