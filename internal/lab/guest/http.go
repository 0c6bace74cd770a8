package guest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Limits of what a request may ask for.
const (
	maxFileMiB    = 1 << 20
	minStreamRate = 2 * ChunkHeader * int(time.Second/ChunkInterval)
	maxStreamRate = 1 << 30
	maxDirtyMiB   = 1 << 20
	defaultDirty  = 32
	defaultRate   = 1 << 20
)

// Stats is the answer of /stats.
type Stats struct {
	Hostname    string       `json:"hostname"`
	UptimeMS    int64        `json:"uptime_ms"`
	BootID      string       `json:"boot_id"`
	DirtyMiBPS  int          `json:"dirty_mib_per_s"`
	DirtyMiB    int          `json:"dirty_mib"`
	Ledger      LedgerStatus `json:"ledger"`
	GuestUnixNS int64        `json:"guest_unix_ns"`
	AgentSilent bool         `json:"agent_silent,omitempty"`
}

// Handler serves the guest's HTTP paths.
func (g *Guest) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stream", g.stream)
	mux.HandleFunc("GET /file/{mib}", g.file)
	mux.HandleFunc("GET /hash/{mib}", g.hash)
	mux.HandleFunc("GET /dirty", g.setDirty)
	mux.HandleFunc("GET /stats", g.stats)
	mux.HandleFunc("GET /agent", g.setAgent)
	mux.HandleFunc("GET /panic", g.fault(g.faults.Panic))
	mux.HandleFunc("GET /hang", g.fault(g.faults.Hang))
	return mux
}

// number reads a query parameter between low and high; def stands for a missing one.
func number(q url.Values, name string, def, low, high int) (int, error) {
	text := q.Get(name)
	if text == "" {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%s=%q: use a number from %d to %d", name, text, low, high)
	}
	return n, nil
}

// stream sends a chunk every ChunkInterval until the client goes. The schedule
// is absolute: what a pause held back is sent at once after it, as a source of video would.
func (g *Guest) stream(w http.ResponseWriter, r *http.Request) {
	rate, err := number(r.URL.Query(), "rate", defaultRate, minStreamRate, maxStreamRate)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	buf := make([]byte, rate/int(time.Second/ChunkInterval))
	start := time.Now()
	for n := uint64(0); ; n++ {
		if !waitUntil(r, start.Add(time.Duration(n)*ChunkInterval)) {
			return
		}
		body := buf[ChunkHeader:]
		for i := range body {
			body[i] = byte(n)
		}
		Chunk{Number: n, Time: time.Now().UnixNano(), Length: uint32(len(body))}.Encode(buf)
		if _, err := w.Write(buf); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
	}
}

// waitUntil returns at t, or false when the client has gone.
func waitUntil(r *http.Request, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return r.Context().Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-timer.C:
		return true
	}
}

// fileOf reads /…/{mib}?seed=n.
func fileOf(r *http.Request) (File, error) {
	mib, err := strconv.Atoi(r.PathValue("mib"))
	if err != nil || mib < 1 || mib > maxFileMiB {
		return File{}, fmt.Errorf("size %q: use a number of MiB from 1 to %d", r.PathValue("mib"), maxFileMiB)
	}
	seed, err := number(r.URL.Query(), "seed", 0, 0, 1<<62)
	return File{MiB: mib, Seed: uint64(seed)}, err
}

// file sends a File, at rate=BYTES_PER_S if the request says so.
func (g *Guest) file(w http.ResponseWriter, r *http.Request) {
	f, err := fileOf(r)
	rate, rateErr := number(r.URL.Query(), "rate", 0, blockSize, maxStreamRate)
	if err == nil {
		err = rateErr
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(f.Size(), 10))
	content, buf, start := f.Reader(), make([]byte, blockSize), time.Now()
	for sent := int64(0); sent < f.Size(); sent += blockSize {
		if rate > 0 && !waitUntil(r, start.Add(time.Duration(float64(sent)/float64(rate)*float64(time.Second)))) {
			return
		}
		n, _ := content.Read(buf) // whole blocks, and no error before the end
		if _, err := w.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (g *Guest) hash(w http.ResponseWriter, r *http.Request) {
	f, err := fileOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, f.Hash())
}

func (g *Guest) setDirty(w http.ResponseWriter, r *http.Request) {
	rate, err := number(r.URL.Query(), "mib_per_s", 0, 0, maxDirtyMiB)
	size, sizeErr := number(r.URL.Query(), "mib", defaultDirty, 1, g.maxDirty)
	if err == nil {
		err = sizeErr
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.dirty.Set(rate, size)
	g.stats(w, r)
}

func (g *Guest) stats(w http.ResponseWriter, _ *http.Request) {
	rate, size := g.dirty.Rate()
	now := time.Now()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Stats{ // the client has gone if this fails
		Hostname: g.config.Hostname, UptimeMS: now.Sub(g.booted).Milliseconds(), BootID: g.boot.String(),
		DirtyMiBPS: rate, DirtyMiB: size, Ledger: g.ledger.Status(), GuestUnixNS: now.UnixNano(),
		AgentSilent: g.silent.Load(),
	})
}
