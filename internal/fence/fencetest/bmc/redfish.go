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
	"errors"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Redfish is a BMC with one system, /redfish/v1/Systems/1. It has basic authentication and sessions.
type Redfish struct {
	User, Password string
	Controller

	mu       sync.Mutex
	sessions map[string]bool // tokens; guarded by mu
}

// Sessions is how many sessions are open.
func (b *Redfish) Sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sessions)
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

func (b *Redfish) system(w http.ResponseWriter, _ *http.Request) {
	state := "Off"
	if b.On() {
		state = "On"
	}
	answer(w, map[string]any{
		"@odata.id": "/redfish/v1/Systems/1", "Id": "1", "UUID": b.UUID(), "PowerState": state,
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{
			"target":                            "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
			"ResetType@Redfish.AllowableValues": []Order{PowerOn, ForceOff, ForceRestart},
		}},
	})
}

func (b *Redfish) reset(w http.ResponseWriter, r *http.Request) {
	var order struct{ ResetType Order }
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx := context.WithoutCancel(r.Context()) // an order is carried out, also if its sender goes
	err := b.Switch(ctx, order.ResetType, func() {
		w.WriteHeader(http.StatusNoContent)
		_ = http.NewResponseController(w).Flush()
	})
	switch {
	case errors.Is(err, model.ErrInvalid):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
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
