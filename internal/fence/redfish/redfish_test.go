package redfish_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/fence/fencetest"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
	"sauh.dev/sauh/internal/fence/redfish"
)

const (
	uuid  = "4c4c4544-004a-3810-8051-b4c04f433232"
	other = "4c4c4544-004a-3810-8051-b4c04f433299"
)

func now() time.Duration { return time.Duration(time.Now().UnixNano()) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// rig is a BMC with a machine, and a configuration that fits it.
type rig struct {
	bmc           *bmc.Redfish
	machine, next *fencetest.Box
	cfg           redfish.Config
}

func newRig(t *testing.T) rig {
	r := rig{machine: &fencetest.Box{ID: uuid}, next: &fencetest.Box{ID: other}}
	r.bmc = &bmc.Redfish{User: "sauh", Password: "secret", Controller: bmc.Controller{Machine: r.machine, Other: r.next}}
	r.cfg = redfish.Config{User: "sauh", Password: "secret", Now: now}
	r.cfg.Address, r.cfg.Fingerprint = fencetest.StartRedfish(t, r.bmc)
	return r
}

func anybody(string) error { return nil }

func TestTheMachineIsAskedSwitchedOffAndAskedAgain(t *testing.T) {
	for _, session := range []bool{false, true} {
		for _, system := range []string{"", "/redfish/v1/Systems/1"} {
			r := newRig(t)
			r.cfg.Session, r.cfg.System = session, system
			c := redfish.New(r.cfg)
			for _, want := range []fence.PowerState{fence.On, fence.Off} {
				got, err := c.Status(within(t, 5*time.Second))
				if err != nil || got.Power != want || got.UUID != uuid || got.Asked == 0 || got.Answered < got.Asked {
					t.Errorf("got %+v, %v, want %s", got, err, want)
				}
				if err := c.PowerOff(within(t, 5*time.Second), anybody); err != nil {
					t.Error(err)
				}
			}
			if r.machine.Orders() != 1 {
				t.Errorf("%d orders: a machine that is off was switched off", r.machine.Orders())
			}
			if n := r.bmc.Sessions(); n != 0 {
				t.Errorf("%d sessions were left open", n)
			}
		}
	}
}

func TestAWrongPasswordIsErrAuthAndSwitchesNothing(t *testing.T) {
	for _, session := range []bool{false, true} {
		r := newRig(t)
		r.cfg.Password, r.cfg.Session = "wrong", session
		c := redfish.New(r.cfg)
		if _, err := c.Status(within(t, 5*time.Second)); !errors.Is(err, redfish.ErrAuth) {
			t.Error(err)
		}
		if err := c.PowerOff(within(t, 5*time.Second), anybody); !errors.Is(err, redfish.ErrAuth) || r.machine.Orders() != 0 {
			t.Errorf("%v, %d orders", err, r.machine.Orders())
		}
	}
}

func TestAnotherCertificateIsRefusedBeforeThePasswordIsSent(t *testing.T) {
	asked := false
	address, _ := serve(t, func(http.ResponseWriter, *http.Request) { asked = true })
	c := redfish.New(redfish.Config{Address: address, User: "u", Password: "p", Fingerprint: strings.Repeat("ab", 32), Now: now})
	if _, err := c.Status(within(t, 5*time.Second)); !errors.Is(err, redfish.ErrCertificate) || asked {
		t.Errorf("%v, asked %v", err, asked)
	}
}

func TestABMCOfAnotherMachineIsNotTold(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFault(bmc.Wrong)
	err := redfish.New(r.cfg).PowerOff(within(t, 5*time.Second), func(got string) error {
		if got != other {
			t.Errorf("got %q", got)
		}
		return fence.ErrStranger
	})
	if !errors.Is(err, fence.ErrStranger) || r.next.Orders()+r.machine.Orders() != 0 {
		t.Errorf("%v, %d orders", err, r.next.Orders())
	}
}

func TestABMCThatHangsOrIsLateCostsItsDeadline(t *testing.T) {
	for _, f := range []bmc.Fault{bmc.Hang, bmc.Late, bmc.Dead} {
		r := newRig(t)
		r.bmc.SetFault(f)
		start := time.Now()
		_, err := redfish.New(r.cfg).Status(within(t, 300*time.Millisecond))
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
			t.Errorf("%s: %v after %v", f, err, took)
		}
	}
}

func serve(t *testing.T, h http.HandlerFunc) (address, fingerprint string) {
	t.Helper()
	return fencetest.StartHandler(t, h)
}

func TestWhatIsNotOnOrOffIsUnknown(t *testing.T) {
	for body, want := range map[string]fence.PowerState{
		`{"PowerState":"PoweringOff"}`: fence.Unknown, `{}`: fence.Unknown, `{"PowerState":null}`: fence.Unknown,
		`{"PowerState":"off"}`: fence.Unknown, `{"PowerState":"Off"}`: fence.Off, `{"PowerState":"On"}`: fence.On,
	} {
		address, pin := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
		c := redfish.New(redfish.Config{Address: address, Fingerprint: pin, System: "/redfish/v1/Systems/1", Now: now})
		if got, err := c.Status(within(t, 5*time.Second)); err != nil || got.Power != want {
			t.Errorf("%s: %v, %v", body, got.Power, err)
		}
	}
}

func TestAnswersThatAreNoRedfishAreErrors(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"empty":   func(http.ResponseWriter, *http.Request) {},
		"a redirection": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		},
		"an error": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"PowerState":"Off"}`, http.StatusServiceUnavailable)
		},
		"two systems": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"Members":[{"@odata.id":"/a"},{"@odata.id":"/b"}],"PowerState":"Off"}`))
		},
		"another host": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"Members":[{"@odata.id":"//127.0.0.1:1/a"}],"PowerState":"Off"}`))
		},
	} {
		address, pin := serve(t, h)
		c := redfish.New(redfish.Config{Address: address, Fingerprint: pin, Now: now})
		if got, err := c.Status(within(t, 5*time.Second)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
