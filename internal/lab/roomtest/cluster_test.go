//go:build room

package roomtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent"
	"sauh.dev/sauh/internal/store/etcd"
)

// fresh gives the test a room of its own, without a cluster.
func fresh(t *testing.T, kind string, n int) *room {
	t.Helper()
	w, err := raise(context.Background(), kind, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	r := enter(t, w)
	r.AgentsAnswer(nodes()[:n]...)
	return r
}

func TestAClusterIsMadeJoinedLeftAndJoinedAgain(t *testing.T) {
	r := fresh(t, "cluster", 3)
	r.Refused("n1", "cluster status", "belongs to no cluster", "sauh cluster create")
	r.Refused("n1", "vm list", "belongs to no cluster")
	r.Refused("n1", "cluster create not_a_name", "not_a_name")
	r.Refused("n1", "cluster create first --mgmt 10.9.9.9", "10.9.9.9 is not an address of this machine")
	r.stillAlone("n1")
	r.Must("n1", "cluster create first")
	r.Refused("n1", "cluster create second", "already a member of cluster first", "sauh cluster leave")
	r.Refused("n1", "cluster leave", "last node")
	r.Refused("n1", "cluster key --valid 200h", "valid")
	if diff := cmp.Diff(numbers{1, 1, 1, true, "n1"}, r.numbers("n1")); diff != "" {
		t.Errorf("a cluster of one (-want +got):\n%s", diff)
	}

	used := r.JoinKey("n1")
	r.Must("n2", "cluster join "+used)
	r.refusesToJoin(t, used)
	r.Must("n3", "cluster join "+r.JoinKey("n2")) // any member lets in
	for _, n := range nodes() {
		r.Eventually(n+" sees three votes", patience, func() error {
			if diff := cmp.Diff(numbers{3, 3, 2, true, "n1 n2 n3"}, r.numbers(n)); diff != "" {
				return fmt.Errorf("(-want +got):\n%s", diff)
			}
			return nil
		})
	}
	r.pvecmForm("n2")

	r.Refused("n1", "cluster remove n3", "n3 is online", "sauh cluster leave")
	r.Refused("n1", "cluster remove n1", "this node", "sauh cluster leave")
	r.Refused("n1", "cluster remove n9", "n9", "does not exist")
	r.Must("n3", "cluster leave")
	r.stillAlone("n3")
	r.Eventually("n1 sees two nodes", patience, func() error { return r.votes("n1", 2, 2, 2) })
	r.Must("n3", "cluster join "+r.JoinKey("n1"))
	r.Eventually("n1 sees three nodes", patience, func() error { return r.votes("n1", 3, 3, 2) })

	r.PowerOff("n3")
	r.Eventually("n1 sees that n3 is off", patience, func() error { return r.votes("n1", 3, 2, 2) })
	r.Must("n2", "cluster remove n3")
	r.Eventually("n1 sees two nodes", patience, func() error { return r.votes("n1", 2, 2, 2) })
	r.PowerOn("n3")
	r.AgentsAnswer("n3")
	r.Eventually("n3 knows that it was removed", patience, func() error {
		if a := r.Sauh("n3", "cluster status"); a.code == 0 || !strings.Contains(a.err, "belongs to no cluster (it was removed from cluster first at ") {
			return fmt.Errorf("%s", a)
		}
		return nil
	})
	r.Must("n3", "cluster join "+r.JoinKey("n1"))
	r.Eventually("n1 sees three nodes", patience, func() error { return r.votes("n1", 3, 3, 2) })
}

// refusesToJoin tries with n3, and with the member n2, what must be refused, and looks after each that nothing is half joined.
func (r *room) refusesToJoin(t *testing.T, used string) {
	t.Helper()
	expired := strings.TrimSpace(r.Must("n1", "cluster key --valid 1s").out)
	r.Throughout(2*time.Second, "", nil) // the key's times are whole seconds
	good := r.JoinKey("n1")
	for _, c := range []struct{ node, line, want string }{
		{"n3", "cluster join " + used, "unknown or was used already"},
		{"n3", "cluster join " + expired, "expired"},
		{"n3", "cluster join " + altered(t, good, "secret", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), "the join key is wrong"},
		{"n3", "cluster join " + altered(t, good, "fingerprint", strings.Repeat("00", 32)), "belongs to another cluster than the one that made this key"},
		{"n3", "cluster join sauh1-AAAA", "not a join key"},
		{"n3", "cluster join " + good[:len(good)-20], "not a join key"},
		{"n3", "cluster join " + good + " --node-name n2", "the name n2 is taken"},
		{"n3", "cluster join " + good + " --node-name N_3", "not a node name"},
		{"n2", "cluster join " + good, "already a member of cluster first"},
	} {
		before := r.members("n1")
		a := r.Refused(c.node, c.line, c.want)
		t.Logf("refused: %s", strings.TrimSpace(a.err))
		if now := r.members("n1"); now != before {
			t.Errorf("after %q the members are\n%s\nbefore:\n%s", c.want, now, before)
		}
		if c.node == "n3" {
			r.stillAlone("n3")
		}
	}
	// The refusals have not used the key up.
	r.Must("n3", "cluster join "+good)
	r.Must("n3", "cluster leave")
	r.stillAlone("n3")
}

// altered changes one field of a join key.
func altered(t *testing.T, key, field, value string) string {
	t.Helper()
	const prefix = "sauh1-"
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(key, prefix))
	fields := map[string]any{}
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if _, ok := fields[field]; err != nil || !ok {
		t.Fatalf("join key %s: %v, %v", key, fields, err)
	}
	fields[field] = value
	if text, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	return prefix + base64.RawURLEncoding.EncodeToString(text)
}

// stillAlone demands that a node belongs to no cluster and keeps nothing of one.
func (r *room) stillAlone(node string) {
	r.t.Helper()
	r.Refused(node, "cluster status", "belongs to no cluster")
	if left := r.Shell(node, "ls -A /var/lib/sauh | grep -v -e '^tasks$' -e '^accel' -e '^probe-' -e '^former$' || true"); left != "" {
		r.t.Errorf("%s keeps %q in /var/lib/sauh", node, left)
	}
}

// members are the nodes of the cluster with everything that is recorded of them but what changes by itself, and the
// members of the store, learners included.
func (r *room) members(node string) string {
	r.t.Helper()
	var b strings.Builder
	for _, n := range r.Cluster(node).Nodes {
		fmt.Fprintf(&b, "%s id %d, %s, %s, votes %d, member %s\n", n.Name, n.ID, n.Mgmt, n.Cluster, n.Votes, n.MemberID)
	}
	b.WriteString(r.storeMembers(node))
	return b.String()
}

// storeMembers asks a node's store itself, with that node's own certificate.
func (r *room) storeMembers(node string) string {
	r.t.Helper()
	dir := fmt.Sprintf("/proc/%d/root%s/", r.initOf(node), filepath.Join(agent.DefaultPaths().State, "certs"))
	own, err := tls.LoadX509KeyPair(dir+"node.pem", dir+"node.key")
	if err != nil {
		r.t.Fatal(err)
	}
	ca, err := os.ReadFile(dir + "ca.pem")
	if err != nil {
		r.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	tr := &http.Transport{DisableKeepAlives: true, DialContext: r.dial, TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: pool}}
	url := fmt.Sprintf("https://10.10.1.%s:%d/members", strings.TrimPrefix(node, "n"), etcd.DefaultPeerPort)
	req, err := http.NewRequestWithContext(r.ctx(5*time.Second), http.MethodGet, url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return string(text)
}

// numbers are those of cluster status.
type numbers struct {
	Expected, Total, Quorum int
	Quorate                 bool
	Online                  string
}

func (r *room) numbers(node string) numbers {
	r.t.Helper()
	st := r.Cluster(node)
	n := numbers{st.ExpectedVotes, st.TotalVotes, st.Quorum, st.Quorate, ""}
	for _, x := range st.Nodes {
		if x.Online && x.OnlineSince > 0 {
			n.Online = strings.TrimSpace(n.Online + " " + x.Name)
		}
	}
	return n
}

func (r *room) votes(node string, expected, total, quorum int) error {
	if n := r.numbers(node); n.Expected != expected || n.Total != total || n.Quorum != quorum {
		return fmt.Errorf("%+v", n)
	}
	return nil
}

// pvecmForm demands the form of Proxmox VE's `pvecm status`, line by line.
func (r *room) pvecmForm(node string) {
	r.t.Helper()
	want := `Cluster information
-------------------
Name:             first
Config Version:   N
Transport:        etcd
Secure auth:      on

Quorum information
------------------
Date:             DATE
Quorum provider:  etcd (raft)
Nodes:            3
Node ID:          0x00000002
Ring ID:          N
Quorate:          Yes

Votequorum information
----------------------
Expected votes:   3
Highest expected: 3
Total votes:      3
Quorum:           2
Flags:            Quorate

Membership information
----------------------
    Nodeid      Votes Name
0x00000001          1 10.10.1.1
0x00000002          1 10.10.1.2 (local)
0x00000003          1 10.10.1.3
`
	got := r.Must(node, "pvecm status").out
	got = regexp.MustCompile(`(Config Version: +)\d+`).ReplaceAllString(got, "${1}N")
	got = regexp.MustCompile(`(Ring ID: +)[0-9a-f]+\.[0-9a-f]+`).ReplaceAllString(got, "${1}N")
	got = regexp.MustCompile(`(Date: +)\S.*`).ReplaceAllString(got, "${1}DATE")
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("pvecm status (-want +got):\n%s", diff)
	}
	table := r.Must(node, "cluster status").out
	for _, w := range []string{"Cluster:", "Expected votes:", "Total votes:", "Quorum:", "Quorate:", "ONLINE SINCE", "n2 (local)", "10.10.2.3"} {
		if !strings.Contains(table, w) {
			r.t.Errorf("cluster status has no %q:\n%s", w, table)
		}
	}
}
