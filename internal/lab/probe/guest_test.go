package probe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/lab/guest/ledger"
	"sauh.dev/sauh/internal/lab/probe"
)

// httpGet returns what the guest answers.
func httpGet(t *testing.T, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+guestIP+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", path, resp.Status, err, text)
	}
	return text
}

// acknowledged waits until a ledger probe's history holds n records more than before.
func acknowledged(t *testing.T, history *lockedBuffer, n int) {
	t.Helper()
	before := history.count(`"kind":"ack"`)
	poll(t, "ledger acknowledges", func() bool { return history.count(`"kind":"ack"`) >= before+n })
}

func verify(t *testing.T, history *lockedBuffer) probe.Verdict {
	t.Helper()
	var h probe.History
	if err := h.ReadHistory(bytes.NewReader(history.bytes())); err != nil {
		t.Fatal(err)
	}
	v, err := probe.Verify(t.Context(), guestIP, h)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAGuestAnswersOnAllItsServices(t *testing.T) {
	t.Parallel()
	disk, inside := inNamespace(t)
	if !inside {
		return
	}
	makeNetwork(t, "tap1")
	m := bootGuest(t, disk, "tap1")
	command(t, "ping", "-c", "3", "-i", "0.2", "-W", "2", guestIP)

	echo := probe.NewEcho(probe.EchoConfig{Target: guestIP}, nil)
	running := probe.Start(t.Context(), echo.Run)
	poll(t, "100 echoes", func() bool { return len(echo.Series()) > 100 })
	sum, err := running.Stop()
	if err != nil || sum.Gaps.Sent < 100 || sum.Gaps.Lost > 5 || sum.Gaps.Longest > time.Second {
		t.Errorf("echo: %+v, %v", sum, err)
	}
	t.Logf("echo: %+v", sum)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	stream, err := probe.NewStream(probe.StreamConfig{Target: guestIP}, nil).Run(ctx)
	if err != nil || stream.Broken || stream.Wrong != 0 || stream.Chunks < 50 {
		t.Errorf("stream: %+v, %v", stream, err)
	}
	t.Logf("stream: %+v", stream)

	file := guest.File{MiB: 16, Seed: 7}
	download, err := probe.NewDownload(probe.DownloadConfig{Target: guestIP, File: file}, nil).Run(t.Context())
	if err != nil || !download.OK || download.WrongAt != -1 {
		t.Errorf("download: %+v, %v", download, err)
	}
	if got, want := string(bytes.TrimSpace(httpGet(t, "/hash/16?seed=7"))), file.Hash(); got != want {
		t.Errorf("/hash/16?seed=7 = %s, want %s", got, want)
	}

	var stats guest.Stats
	if err := json.Unmarshal(httpGet(t, "/dirty?mib_per_s=20&mib=16"), &stats); err != nil {
		t.Fatal(err)
	}
	if stats.DirtyMiBPS != 20 || stats.DirtyMiB != 16 || stats.Hostname != "probe1" || !stats.Ledger.Open {
		t.Errorf("stats after /dirty: %+v", stats)
	}

	_, _ = m.tty.Write([]byte("status\n"))
	m.saw(t, "ledger {")
	_, _ = m.tty.Write([]byte("poweroff\n"))
	<-m.exited
}

func TestAGuestSwitchesOffAtTheACPIButton(t *testing.T) {
	t.Parallel()
	disk, inside := inNamespace(t)
	if !inside {
		return
	}
	makeNetwork(t, "tap1")
	m := bootGuest(t, disk, "tap1")
	start := time.Now()
	m.qmp.do(t, "system_powerdown", nil)
	select {
	case <-m.exited:
		t.Logf("off %s after the button", time.Since(start).Round(time.Millisecond))
	case <-time.After(10 * time.Second):
		t.Fatalf("still running 10 s after the button:\n%s", m.printed())
	}
}

func TestALedgerLosesNothingWhenItsGuestIsKilledAndTamperingIsFound(t *testing.T) {
	t.Parallel()
	disk, inside := inNamespace(t)
	if !inside {
		return
	}
	makeNetwork(t, "tap1")
	m := bootGuest(t, disk, "tap1")
	history := &lockedBuffer{}
	client := probe.Start(t.Context(), probe.NewLedger(probe.LedgerConfig{
		Target: guestIP, Interval: 2 * time.Millisecond, Timeout: time.Second,
	}, history).Run)

	const kills = 3
	for range kills {
		acknowledged(t, history, 100)
		m.kill()
		m = bootGuest(t, disk, "tap1")
	}
	acknowledged(t, history, 100)
	sum, err := client.Stop()
	if err != nil || sum.Connections < kills+1 {
		t.Errorf("client: %+v, %v", sum, err)
	}
	v := verify(t, history)
	t.Logf("client: %+v", sum)
	t.Logf("verdict: %+v", v)
	if !v.OK() || v.Acknowledged < 100*(kills+1) || len(v.Chain.Boots) != kills+1 {
		t.Fatalf("verdict after %d kills: %+v", kills, v)
	}

	m.kill()
	tamper(t, disk, 50)
	bootGuest(t, disk, "tap1")
	if v := verify(t, history); v.OK() || v.Wrong != 1 || v.Faults[0].Number != 50 {
		t.Errorf("verdict after record 50 was changed: %+v", v)
	}
}

// tamper flips one bit of a record's payload on the disk.
func tamper(t *testing.T, disk string, number int64) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := guest.LedgerOffset + (number-1)*ledger.SlotSize + 100
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func TestAGuestLivesThroughMigrationsByHand(t *testing.T) {
	disk, inside := inNamespace(t)
	if !inside {
		return
	}
	makeNetwork(t, "tap0", "tap1")
	m := bootGuest(t, disk, "tap0")
	history := &lockedBuffer{}
	echo := probe.NewEcho(probe.EchoConfig{Target: guestIP}, nil)
	echoing := probe.Start(t.Context(), echo.Run)
	writing := probe.Start(t.Context(), probe.NewLedger(probe.LedgerConfig{Target: guestIP}, history).Run)
	streaming := probe.Start(t.Context(), probe.NewStream(probe.StreamConfig{Target: guestIP}, nil).Run)
	loading := probe.Start(t.Context(), probe.NewDownload(probe.DownloadConfig{
		Target: guestIP, File: guest.File{MiB: 8, Seed: 1}, Rate: 1 << 20,
	}, nil).Run)

	for i, dirty := range []int{0, 50, 200} {
		httpGet(t, fmt.Sprintf("/dirty?mib_per_s=%d&mib=64", dirty))
		acknowledged(t, history, 100)
		from := probe.Now()
		var info map[string]any
		m, info = migrate(t, m, disk, fmt.Sprintf("tap%d", (i+1)%2))
		to := probe.Now()
		acknowledged(t, history, 100)
		gap := probe.Gaps(echo.Series(), from, to)
		if gap.Open || gap.Longest > 3*time.Second {
			t.Errorf("gap of the echo: %+v", gap)
		}
		t.Logf("%d MiB/s dirtied: gap %s, lost %d of %d; QEMU: total %v ms, downtime %v ms",
			dirty, gap.Longest.Round(time.Millisecond), gap.Lost, gap.Sent, info["total-time"], info["downtime"])
	}

	<-loading.Done()
	download, err := loading.Stop()
	if err != nil || !download.OK {
		t.Errorf("download: %+v, %v", download, err)
	}
	stream, err := streaming.Stop()
	if err != nil || stream.Broken || stream.Wrong != 0 {
		t.Errorf("stream: %+v, %v", stream, err)
	}
	sum, err := writing.Stop()
	if err != nil || sum.Connections != 1 || sum.Unknown > 1 {
		t.Errorf("ledger: %+v, %v", sum, err)
	}
	if _, err := echoing.Stop(); err != nil {
		t.Error(err)
	}
	if v := verify(t, history); !v.OK() || len(v.Chain.Boots) != 1 {
		t.Errorf("verdict: %+v", v)
	}
	t.Logf("longest stalls: stream %.0f ms, download %.0f ms, ledger %.0f ms", stream.LongestMS, download.LongestMS, sum.LongestMS)
	m.qmp.do(t, "system_powerdown", nil)
	<-m.exited
}

// migrate moves the guest to a new QEMU by bare QMP, ends the old one, and
// returns the new one and what query-migrate said.
func migrate(t *testing.T, source *machine, disk, tap string) (*machine, map[string]any) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "migrate")
	target := startQEMU(t, disk, tap, "-incoming", "unix:"+socket)
	// QEMU's own limit of 128 MiB/s is below what the test lets the guest dirty,
	// and without the limit its own downtime of 300 ms would be used up.
	source.qmp.do(t, "migrate-set-parameters", map[string]any{"max-bandwidth": 10 << 30, "downtime-limit": 20})
	source.qmp.do(t, "migrate", map[string]any{"uri": "unix:" + socket})
	var info map[string]any
	poll(t, "migration completes", func() bool {
		info = source.qmp.do(t, "query-migrate", nil)
		if status := info["status"]; status == "failed" || status == "cancelled" {
			t.Fatalf("migration %s", status)
		}
		return info["status"] == "completed"
	})
	source.kill()
	return target, info
}
