package api_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/api/apitest"
	"sauh.dev/sauh/internal/core/model"
)

// raw sends bytes and returns all that comes back until the server closes.
func raw(t *testing.T, srv *httptest.Server, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnErrorStandsInTheStatusLineAndClosesTheConnection(t *testing.T) {
	srv := serve(t, apitest.New())
	got := raw(t, srv, "GET /api2/json/nodes/n1/qemu/999/config HTTP/1.1\r\nHost: x\r\n\r\n")
	head, body, _ := strings.Cut(got, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	if want := "HTTP/1.1 500 Configuration file 'nodes/n1/qemu-server/999.conf' does not exist"; lines[0] != want {
		t.Errorf("status line %q, want %q", lines[0], want)
	}
	if want := `{"data":null,"message":"Configuration file 'nodes/n1/qemu-server/999.conf' does not exist\n"}`; body != want {
		t.Errorf("body %q, want %q", body, want)
	}
	for _, want := range []string{
		"Connection: close", "Content-Type: application/json;charset=UTF-8", "Server: pve-api-daemon/3.0", "Cache-Control: max-age=0",
		fmt.Sprintf("Content-Length: %d", len(body)), "Sauh-Error: not-found",
	} {
		if !strings.Contains(head, want) {
			t.Errorf("the head lacks %q:\n%s", want, head)
		}
	}
}

func TestAnErrorArrivesAlthoughTheBodyWasNotRead(t *testing.T) {
	srv := serve(t, apitest.New())
	body := strings.Repeat("x", 300<<10)
	got := raw(t, srv, fmt.Sprintf("POST /api2/json/nonsense HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	if want := "HTTP/1.1 501 Method 'POST /nonsense' not implemented\r\n"; !strings.HasPrefix(got, want) {
		t.Errorf("got %.200q, want prefix %q", got, want)
	}
}

func TestOnlyTheFirstLineOfAMessageStandsInTheStatusLine(t *testing.T) {
	f := apitest.New()
	f.Fail["Guests.Start"] = errors.New("first\tline\nInjected: header\r\n\r\nbody")
	got := raw(t, serve(t, f), "POST /api2/json/nodes/n1/qemu/101/status/start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	if want := "HTTP/1.1 500 first line\r\n"; !strings.HasPrefix(got, want) {
		t.Errorf("got %.200q, want prefix %q", got, want)
	}
	if head, _, _ := strings.Cut(got, "\r\n\r\n"); strings.Contains(head, "\nInjected") {
		t.Errorf("the message reached the headers:\n%s", head)
	}
}

func TestABodyWithoutAContentTypeIsAForm(t *testing.T) {
	f := apitest.New()
	srv := serve(t, f)
	got := raw(t, srv, "POST /api2/json/storage HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 30\r\n\r\nstorage=s;type=dir&path=/%2Fmn")
	if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") {
		t.Fatalf("got %q", got)
	}
	if diff := cmp.Diff([]string{"Storages.AddStorage s path=//mn type=dir"}, f.Calls()); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNoRequestOfTheAPIIsRefused(t *testing.T) {
	srv := serve(t, apitest.New())
	for _, tc := range []struct{ request, want string }{
		{"PATCH /api2/json/version HTTP/1.1\r\nHost: x\r\n\r\n", "501 method 'PATCH' not available"},
		{"GET /index.html HTTP/1.1\r\nHost: x\r\n\r\n", "404 no such file '/index.html'"},
		{"GET /api2/json/version HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "501 Unexpected content for method 'GET'"},
		{"DELETE /api2/json/storage/nas HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "501 Unexpected content for method 'DELETE'"},
		{
			"POST /api2/json/storage HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx",
			"506 upload 'Content-Type 'text/plain' not implemented",
		},
		{
			"POST /api2/json/storage HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n" + strings.Repeat("x", 600000),
			"501 for data too large: the body of a request has at most 512 KiB",
		},
		{"GET /api2/json/version?_dc=1&x=1 HTTP/1.1\r\nHost: x\r\n\r\n", "400 Parameter verification failed."},
		{"GET /api2/json/version?a=%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400 the parameters are not form-encoded: invalid URL escape \"%zz\""},
	} {
		line, _, _ := strings.Cut(raw(t, srv, tc.request), "\r\n")
		if want := "HTTP/1.1 " + tc.want; line != want {
			t.Errorf("%.60q: got %q, want %q", tc.request, line, want)
		}
	}
}

func TestErrorsOfTheBackendHaveTheirFormOnTheWire(t *testing.T) {
	const start = "POST /nodes/n1/qemu/101/status/start"
	for _, tc := range []struct {
		method, request string
		err             error
		want            string
	}{
		{
			"Guests.Start", start, model.Errorf(model.ErrNoQuorum, "the store has no majority"),
			"500 cluster not ready - no quorum? Nothing can be changed until more than half of the votes are online; see 'sauh cluster status'",
		},
		{"Guests.Start", start, model.Errorf(model.ErrBusy, "VM is locked (migrate)"), "500 VM is locked (migrate)"},
		{"Guests.Start", start, context.DeadlineExceeded, "500 got timeout: context deadline exceeded"},
		{
			"Guests.SetConfig", "PUT /nodes/n1/qemu/100/config cores=1", fmt.Errorf("write: %w", model.ErrConflict),
			"500 detected modified configuration - file changed by other user? Try again.",
		},
		{
			"Guests.SetConfig", "PUT /nodes/n1/qemu/100/config cores=1", &model.InvalidError{Param: "net0", Line: 3, Msg: "duplicate key"},
			`400 Parameter verification failed.|"net0":"line 3: duplicate key"`,
		},
		{"Storages.AddStorage", "POST /storage storage=s&type=dir&path=/x", model.ErrExists, "500 create storage failed: storage ID 's' already defined"},
		{"Storages.RemoveStorage", "DELETE /storage/s", fmt.Errorf("remove s: %w", model.ErrNotFound), "500 storage 's' does not exist"},
		{
			"Storages.DeleteVolume", "DELETE /nodes/n1/storage/nas/content/1/x.raw", model.Errorf(model.ErrNotFound, "volume nas:1/x.raw does not exist"),
			"500 volume nas:1/x.raw does not exist",
		},
		{"HA.HAAdd", "POST /cluster/ha/resources sid=vm:100", model.ErrExists, "500 resource ID 'vm:100' already defined"},
		{"HA.HARemove", "DELETE /cluster/ha/resources/vm:9999", model.ErrNotFound, "500 no such resource 'vm:9999'"},
		{"Cluster.Create", "POST /cluster/config clustername=Bad", model.Invalidf("", "%q is no name", "Bad"), `400 "Bad" is no name`},
	} {
		f := apitest.New()
		f.Fail[tc.method] = tc.err
		got := exchange(t, serve(t, f), tc.request)
		for want := range strings.SplitSeq(tc.want, "|") {
			if !strings.Contains(got, want) {
				t.Errorf("%s with %v: got\n%swant %s", tc.method, tc.err, got, want)
			}
		}
	}
}

func TestDestroyTakesAProtectedGuestOutOfHAOnlyWithPurge(t *testing.T) {
	f := apitest.New()
	f.Guests[0].Status = "stopped"
	srv := serve(t, f)
	got := exchange(t, srv, "DELETE /nodes/n1/qemu/100")
	if want := "500 unable to remove VM 100 - used in HA resources and purge parameter not set: `sauh vm destroy 100 --purge` takes it out of them, too"; !strings.Contains(got, want) {
		t.Errorf("got\n%swant %s", got, want)
	}
	exchange(t, srv, "DELETE /nodes/n1/qemu/100?purge=1")
	if diff := cmp.Diff([]string{"HA.HARemove vm:100 purge true", "Guests.Destroy 100"}, f.Calls()); diff != "" {
		t.Error(diff)
	}
}

func TestATemplateFlagOfZeroIsLeftOut(t *testing.T) {
	f := apitest.New()
	f.Configs[100] = api.GuestConfig{Values: map[string]string{"template": "0", "kvm": "1"}, Digest: "d"}
	if got := exchange(t, serve(t, f), "GET /nodes/n1/qemu/100/config"); !strings.Contains(got, `{"data":{"digest":"d","kvm":1}}`) {
		t.Errorf("got %s", got)
	}
}

func TestAnEmptyLogHasALine(t *testing.T) {
	f := apitest.New()
	const upid = "UPID:n1:00001267:00000000:695735A5:qmstart:101:root@pam:"
	f.Logs[upid] = nil
	if got := exchange(t, serve(t, f), "GET /nodes/n1/tasks/"+upid+"/log"); !strings.Contains(got, `{"data":[{"n":1,"t":"no content"}],"total":1}`) {
		t.Errorf("got %s", got)
	}
}

// Forwarding: n1 gets what concerns n2 and hands it on.

type hostTransport struct{ base string }

func (h hostTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "http", strings.TrimPrefix(h.base, "http://")
	return http.DefaultTransport.RoundTrip(r)
}

// pair is n1 and n2, each a server of its own; n2 has guest 102.
func pair(t *testing.T) (n1, n2 *apitest.Fake, front *httptest.Server) {
	t.Helper()
	n1, n2 = apitest.New(), apitest.New()
	n2.Cluster.Local = "n2"
	n2.Info.Node = "n2"
	back := serve(t, n2)
	n1.Transports["n2"] = hostTransport{back.URL}
	return n1, n2, serve(t, n1)
}

func TestARequestForAnotherNodeIsAnsweredThere(t *testing.T) {
	n1, n2, front := pair(t)
	got := exchange(t, front, "POST /nodes/n2/qemu/102/status/shutdown timeout=5;forceStop=1")
	if !strings.Contains(got, "< 200 OK") {
		t.Errorf("got %s", got)
	}
	if diff := cmp.Diff([]string{"Guests.Shutdown 102 5s force true"}, n2.Calls()); diff != "" {
		t.Error(diff)
	}
	if c := n1.Calls(); len(c) > 0 {
		t.Errorf("n1 did %v", c)
	}
}

func TestARefusalOfAnotherNodeKeepsItsPhraseItsBodyAndItsKind(t *testing.T) {
	_, _, front := pair(t)
	got := raw(t, front, "GET /api2/json/nodes/n2/qemu/100/config HTTP/1.1\r\nHost: x\r\n\r\n")
	for _, want := range []string{
		"HTTP/1.1 500 Configuration file 'nodes/n2/qemu-server/100.conf' does not exist\r\n", "Sauh-Error: not-found",
		`"message":"Configuration file 'nodes/n2/qemu-server/100.conf' does not exist\n"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	got = exchange(t, front, "GET /nodes/n2/qemu/102/config?bogus=1;x=2")
	if want := `"errors":{"bogus":"property is not defined`; !strings.Contains(got, want) || !strings.Contains(got, `"x":"property`) {
		t.Errorf("%q is missing in\n%s", want, got)
	}
}

func TestANodeThatDoesNotAnswerIsStatus595(t *testing.T) {
	_, _, front := pair(t)
	got := exchange(t, front, "GET /nodes/n3/qemu")
	if want := "< 595 node 'n3' does not answer: "; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestANodeThatIsOffIsSaidToBe(t *testing.T) {
	n1, _, front := pair(t)
	n1.Change(func() { n1.Cluster.Nodes[2].Online = false })
	got := exchange(t, front, "POST /nodes/n3/qemu vmid=300")
	if want := "< 595 node 'n3' is offline: switch it on, or see what is up with 'sauh cluster status' ("; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	// What is in the store needs no node but this one.
	if got = exchange(t, front, "GET /sauh/guests/100/config"); !strings.Contains(got, `"name":"web"`) {
		t.Errorf("got %s", got)
	}
}

func TestAForwardedRequestIsNotForwardedAgain(t *testing.T) {
	f := apitest.New()
	srv := serve(t, f)
	got := raw(t, srv, "GET /api2/json/nodes/n2/qemu HTTP/1.1\r\nHost: x\r\nSauh-Forwarded: n3\r\n\r\n")
	line, _, _ := strings.Cut(got, "\r\n")
	if want := "HTTP/1.1 595 node 'n3' sent a request for node 'n2' to node 'n1': is one of their addresses used twice?"; line != want {
		t.Errorf("got %q, want %q", line, want)
	}
}

func TestNodesShowsTheLoadOfThoseThatAnswer(t *testing.T) {
	_, n2, front := pair(t)
	n2.Info.CPUs = 64
	got := exchange(t, front, "GET /nodes")
	for _, want := range []string{`"maxcpu":64`, `{"id":"node/n3","level":"","node":"n3","status":"online","type":"node"}`} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %s", want, got)
		}
	}
}

// The console.

func dialConsole(t *testing.T, srv *httptest.Server, path string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return websocket.Dial(ctx, srv.URL+api.Prefix+path, &websocket.DialOptions{Subprotocols: []string{"binary"}})
}

func TestTheConsoleCarriesBytesBothWaysAlsoThroughAnotherNode(t *testing.T) {
	_, n2, front := pair(t)
	n2.Console = func(port net.Conn) {
		line, _ := bufio.NewReader(port).ReadString('\n')
		_, _ = io.WriteString(port, "you typed "+line)
	}
	ws, resp, err := dialConsole(t, front, "/sauh/nodes/n2/qemu/102/console")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != "binary" {
		t.Errorf("subprotocol %q", got)
	}
	conn := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if got := string(b); err != nil || got != "you typed hello\n" {
		t.Errorf("got %q, %v; want the echo and an orderly end", got, err)
	}
	n2.Wait()
}

func TestAConsoleThatCannotBeOpenedIsAnOrdinaryError(t *testing.T) {
	f := apitest.New()
	f.Fail["Guests.Console"] = model.Errorf(model.ErrInvalid, "guest 100 has no serial port: set serial0 to socket")
	_, resp, err := dialConsole(t, serve(t, f), "/sauh/nodes/n1/qemu/100/console")
	if err == nil || resp == nil || resp.Status != "400 guest 100 has no serial port: set serial0 to socket" {
		t.Errorf("got %v, %v", resp, err)
	}
}

// Who may ask.

type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca{cert, key}
}

func (c ca) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestOnTCPOnlyACertificateOfTheClusterOpensMoreThanTheJoinPath(t *testing.T) {
	ours, theirs := newCA(t), newCA(t)
	f := apitest.New()
	f.PeerHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "peer "+r.URL.Path) })
	srv := httptest.NewUnstartedServer(api.NewServer(f.Backend(), api.Options{}))
	srv.Config.ConnContext = api.LocalConnContext
	srv.Config.ErrorLog = nil
	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	srv.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, Certificates: []tls.Certificate{ours.issue(t, "n1")}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	member := []tls.Certificate{ours.issue(t, "n2")}
	for _, tc := range []struct {
		name, path string
		certs      []tls.Certificate
		want       string
	}{
		{"member", "/version", member, "200 OK"},
		{"member", "/sauh/peer/x", member, "200 OK"},
		{"nobody", "/version", nil, "401 No ticket"},
		{"nobody", "/sauh/peer/x", nil, "401 No ticket"},
		{"nobody", "/sauh/cluster/join", nil, "401 No ticket"},
		{"nobody", "/sauh/joinx", nil, "401 No ticket"},
		{"nobody", "/sauh/join", nil, "200 OK"},
		{"nobody", "/sauh/join/../../version", nil, "401 No ticket"},
		{"stranger", "/version", []tls.Certificate{theirs.issue(t, "n2")}, "tls: "},
	} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: tc.certs}}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+api.Prefix, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path += tc.path
		got := ""
		resp, err := client.Do(req)
		if err != nil {
			got = err.Error()
		} else {
			got = resp.Status
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusUnauthorized && len(b) > 0 {
				t.Errorf("%s %s: the body of a 401 is %q", tc.name, tc.path, b)
			}
		}
		client.CloseIdleConnections()
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s %s: got %q, want %q", tc.name, tc.path, got, tc.want)
		}
	}
}

func TestPlainTCPIsRefusedAndTheUnixSocketIsNot(t *testing.T) {
	srv := httptest.NewUnstartedServer(api.NewServer(apitest.New().Backend(), api.Options{}))
	srv.Config.ConnContext = api.LocalConnContext
	srv.Start()
	t.Cleanup(srv.Close)
	if got := raw(t, srv, "GET /api2/json/version HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 401 No ticket\r\n") {
		t.Errorf("plain TCP got %q", got)
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	local := &httptest.Server{Listener: ln, Config: srv.Config}
	local.Start()
	t.Cleanup(local.Close)
	conn, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /api2/json/version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("the unix socket got %q, %v", line, err)
	}
}

// A node that is no member has none of the roles behind these paths; its answer says why, whatever is asked.
func TestANodeThatIsNoMemberSaysSo(t *testing.T) {
	f := apitest.New()
	b := api.Backend{
		Cluster: f.Backend().Cluster, Tasks: f.Backend().Tasks,
		Absent: func() error { return model.Errorf(model.ErrUnavailable, "this node belongs to no cluster") },
	}
	h := api.NewServer(b, api.Options{Local: func(*http.Request) bool { return true }})
	for _, c := range []struct{ method, path string }{
		{"GET", "/cluster/nextid"},
		{"GET", "/cluster/resources"},
		{"GET", "/sauh/guests"},
		{"GET", "/nodes/localhost/qemu"},
		{"POST", "/nodes/localhost/qemu/100/status/start"},
		{"GET", "/sauh/nodes/localhost/qemu/100/console"},
		{"GET", "/storage"},
		{"GET", "/sauh/ha/status"},
		{"GET", "/nodes/n2/status"},
		{"GET", "/nodes/n2/tasks"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, api.Prefix+c.path, nil))
		if !strings.Contains(w.Body.String(), "this node belongs to no cluster") || w.Code < 500 {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/version", "/nodes/localhost/tasks", "/sauh/nodes/localhost/info"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", api.Prefix+path, nil))
		if w.Code != http.StatusOK {
			t.Errorf("GET %s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestAMemberThatMayChangeNothingShowsEverythingAndLeaves(t *testing.T) {
	f := apitest.New()
	b := f.Backend()
	b.ReadOnly = func() error { return model.Errorf(model.ErrUnavailable, "n1 is leaving") }
	h := api.NewServer(b, api.Options{Local: func(*http.Request) bool { return true }})
	ask := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, api.Prefix+path, nil))
		return w
	}
	for _, c := range []struct{ method, path string }{
		{"POST", "/storage"},
		{"DELETE", "/cluster/ha/resources/vm:100"},
		{"POST", "/nodes/n1/qemu/101/status/start"},
		{"POST", "/nodes/n2/qemu/102/status/start"},
		{"PUT", "/nodes/n1/qemu/100/config"},
		{"POST", "/sauh/cluster/key"},
	} {
		if w := ask(c.method, c.path); w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "n1 is leaving") {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
	if diff := cmp.Diff([]string(nil), f.Calls()); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct{ method, path string }{{"GET", "/cluster/status"}, {"GET", "/sauh/guests"}, {"POST", "/sauh/cluster/leave"}} {
		if w := ask(c.method, c.path); w.Code != http.StatusOK {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
}
