// Package bmc is a BMC that speaks Redfish, with all that can be wrong with one. The
// machine room gives one to each of its nodes, and the tests of internal/fence try their drivers on it.
//
// It is no production code: it trusts whoever knows the password, and keeps
// nothing over a restart. Invariant: an order that was taken is carried out, whoever hangs up meanwhile.
// Start reading with [Redfish].
package bmc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Machine is what a BMC switches.
type Machine interface {
	// On is whether it has power.
	On() bool
	// PowerOff returns when it has none any more, PowerOn when it is switched on.
	PowerOff(ctx context.Context) error
	PowerOn(ctx context.Context) error
	// UUID is the system UUID.
	UUID() string
}

// Fault is what is wrong with a BMC.
type Fault string

// The faults of a Redfish BMC.
const (
	Healthy Fault = "none"
	Hang    Fault = "hang"  // it takes connections and never answers
	Lie     Fault = "lie"   // it says off, and switches nothing
	Wrong   Fault = "wrong" // it is another machine's: it names that one and switches it
	Dead    Fault = "dead"  // it has no power: nothing answers at all
	Tied    Fault = "tied"  // it loses its power with its machine
	Late    Fault = "late"  // it answers, each time after LateBy
	Early   Fault = "early" // it says off as soon as it was told to switch, EarlyBy before it is
)

// LateBy and EarlyBy are the times of the faults Late and Early.
const (
	LateBy  = 3 * time.Second
	EarlyBy = time.Second
)

// ParseFault reads the name of a fault.
func ParseFault(s string) (Fault, error) {
	for _, f := range []Fault{Healthy, Hang, Lie, Wrong, Dead, Tied, Late, Early} {
		if string(f) == s {
			return f, nil
		}
	}
	return "", model.Invalidf("fault", "%q is no fault of a BMC: use hang, lie, wrong, dead, tied, late, early or none", s)
}

// Redfish is a BMC with one system, /redfish/v1/Systems/1. It has basic authentication and sessions.
type Redfish struct {
	User, Password string
	// Machine is its own, Other the one of the fault Wrong.
	Machine, Other Machine

	mu       sync.Mutex
	fault    Fault           // guarded by mu
	told     bool            // with Early: it was told to switch off; guarded by mu
	sessions map[string]bool // tokens; guarded by mu
}

// SetFault breaks or heals the BMC.
func (b *Redfish) SetFault(f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault, b.told = f, false
}

// Fault is what is wrong with it.
func (b *Redfish) Fault() Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fault == "" {
		return Healthy
	}
	return b.fault
}

// Sessions is how many sessions are open.
func (b *Redfish) Sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sessions)
}

// Silent says whether the BMC has no power itself.
func (b *Redfish) Silent() bool {
	f := b.Fault()
	return f == Dead || f == Tied && !b.Machine.On()
}

// ServeHTTP answers as the fault wants it.
func (b *Redfish) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := b.Fault()
	if f == Hang || b.Silent() {
		<-r.Context().Done()
		return
	}
	if f == Late {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(LateBy):
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /redfish/v1/SessionService/Sessions", b.logIn)
	mux.Handle("DELETE /redfish/v1/SessionService/Sessions/{token}", b.admit(b.logOut))
	mux.Handle("GET /redfish/v1/Systems", b.admit(b.systems))
	mux.Handle("GET /redfish/v1/Systems/1", b.admit(b.system))
	mux.Handle("POST /redfish/v1/Systems/1/Actions/ComputerSystem.Reset", b.admit(b.reset))
	mux.ServeHTTP(w, r)
}

func (b *Redfish) admit(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, basic := r.BasicAuth()
		b.mu.Lock()
		known := b.sessions[r.Header.Get("X-Auth-Token")]
		b.mu.Unlock()
		if !known && (!basic || user != b.User || password != b.Password) {
			http.Error(w, `{"error":{"code":"Base.1.0.GeneralError","message":"unauthorized"}}`, http.StatusUnauthorized)
			return
		}
		h(w, r)
	})
}

func (b *Redfish) logIn(w http.ResponseWriter, r *http.Request) {
	var who struct{ UserName, Password string }
	if err := json.NewDecoder(r.Body).Decode(&who); err != nil || who.UserName != b.User || who.Password != b.Password {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails
	token := hex.EncodeToString(raw[:])
	b.mu.Lock()
	if b.sessions == nil {
		b.sessions = map[string]bool{}
	}
	b.sessions[token] = true
	b.mu.Unlock()
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", "/redfish/v1/SessionService/Sessions/"+token)
	w.WriteHeader(http.StatusCreated)
}

func (b *Redfish) logOut(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	delete(b.sessions, r.PathValue("token"))
	b.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (b *Redfish) systems(w http.ResponseWriter, _ *http.Request) {
	answer(w, map[string]any{"Members@odata.count": 1, "Members": []map[string]string{{"@odata.id": "/redfish/v1/Systems/1"}}})
}

// machine is the one that the BMC is cabled to.
func (b *Redfish) machine() Machine {
	if b.Fault() == Wrong && b.Other != nil {
		return b.Other
	}
	return b.Machine
}

func (b *Redfish) system(w http.ResponseWriter, _ *http.Request) {
	m := b.machine()
	b.mu.Lock()
	lies := b.fault == Lie || b.fault == Early && b.told
	b.mu.Unlock()
	state := "On"
	if lies || !m.On() {
		state = "Off"
	}
	answer(w, map[string]any{
		"@odata.id": "/redfish/v1/Systems/1", "Id": "1", "UUID": m.UUID(), "PowerState": state,
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{
			"target":                            "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
			"ResetType@Redfish.AllowableValues": []string{"On", "ForceOff", "ForceRestart"},
		}},
	})
}

func (b *Redfish) reset(w http.ResponseWriter, r *http.Request) {
	var order struct{ ResetType string }
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx := context.WithoutCancel(r.Context()) // an order is carried out, also if its sender goes
	b.mu.Lock()
	fault := b.fault
	b.told = order.ResetType == "ForceOff"
	b.mu.Unlock()
	if fault == Lie {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if fault == Early {
		w.WriteHeader(http.StatusNoContent)
		_ = http.NewResponseController(w).Flush()
		<-time.After(EarlyBy)
	}
	m := b.machine()
	var err error
	switch order.ResetType {
	case "ForceOff":
		err = m.PowerOff(ctx)
	case "On":
		err = m.PowerOn(ctx)
	case "ForceRestart":
		if err = m.PowerOff(ctx); err == nil {
			err = m.PowerOn(ctx)
		}
	default:
		http.Error(w, fmt.Sprintf("ResetType %q", order.ResetType), http.StatusBadRequest)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if fault != Early {
		w.WriteHeader(http.StatusNoContent)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Certificate makes a self-signed certificate for a BMC, and its fingerprint as ha/fence.cfg wants it.
func Certificate(name string, addresses ...net.IP) (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), IPAddresses: addresses,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(raw)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, hex.EncodeToString(sum[:]), nil
}

// Serve makes the server that a BMC's listener is given to. Its own complaints, which are those of clients that went, are dropped.
func Serve(h http.Handler, cert tls.Certificate) *http.Server {
	return &http.Server{
		Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(discard{}, "", 0),
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
