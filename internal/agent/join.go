package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
)

// joinLimit is how long a node may take from the answer to its request until it
// is a voter; after it the member that answered takes everything back.
const joinLimit = 60 * time.Second

// maxVoters is the largest number of nodes in this version: each is a voter.
const maxVoters = 5

// Join implements api.Cluster: this machine asks a member to be let in. When
// it fails nothing is left here, and the member takes its side back.
func (a *Agent) Join(ctx context.Context, joinKeyText, nodeName string) error {
	a.joining.Lock()
	defer a.joining.Unlock()
	if err := a.refuseIfMember(); err != nil {
		return err
	}
	k, err := parseJoinKey(joinKeyText)
	if err != nil {
		return err
	}
	self, err := a.selfNode(ctx, nodeName, "", "")
	if err != nil {
		return err
	}
	key, csr, err := certs.NewRequest(self.Name, []string{self.Mgmt, self.Cluster})
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	reply, err := askToJoin(ctx, k, joinRequest{ID: k.ID, Secret: k.Secret, Node: self, CSR: string(csr)})
	if err != nil {
		return err
	}
	undo := a.wipeMembership
	defer func() {
		if undo != nil {
			undo()
		}
	}()
	if err := a.keepCerts(reply, key); err != nil {
		return err
	}
	ms := &Membership{Node: reply.Node, Cluster: reply.Cluster, Initial: reply.Initial, Existing: true}
	m, err := a.openMember(ctx, ms)
	if err != nil {
		return fmt.Errorf("start as a member of %s: %w", reply.Cluster.Name, err)
	}
	if err := m.membership.awaitVote(ctx); err != nil {
		m.close()
		return fmt.Errorf("join %s: %w: nothing was changed here; look at the cluster's side with `sauh cluster status` and try again with a new key", reply.Cluster.Name, err)
	}
	err = m.membership.catchUp(ctx)
	if err == nil {
		err = saveJSON(a.opts.Paths.membership(), ms)
	}
	if err == nil {
		err = a.activate(m) // closes m when it fails
	} else {
		m.close()
	}
	if err != nil {
		return fmt.Errorf("%w: this node is a voter of %s already and cannot serve it: run `sauh cluster remove %s` on a member", err, reply.Cluster.Name, self.Name)
	}
	undo = nil
	return nil
}

// keepCerts writes the certificates that the cluster sent.
func (a *Agent) keepCerts(reply joinReply, key *ecdsa.PrivateKey) error {
	ca, err := certs.ParseCert([]byte(reply.CA))
	if err != nil {
		return fmt.Errorf("the cluster's CA: %w", err)
	}
	cert, err := certs.ParseCert([]byte(reply.Cert))
	if err != nil {
		return fmt.Errorf("this node's certificate: %w", err)
	}
	return a.saveCerts(certs.Pair{Cert: cert, Key: key}, ca)
}

// askToJoin sends the request to each address of the key until a member
// answers. A refusal is final; only a member that does not answer is passed over.
func askToJoin(ctx context.Context, k joinKey, r joinRequest) (joinReply, error) {
	var last error
	for _, addr := range k.Addresses {
		if !reachable(ctx, addr) {
			last = fmt.Errorf("%s does not answer", addr)
			continue
		}
		reply, err := postJoin(ctx, k.Fingerprint, addr, r)
		var refused *refusal
		if err == nil || errors.As(err, &refused) {
			return reply, err
		}
		if errors.Is(err, certs.ErrMismatch) {
			err = fmt.Errorf("%s belongs to another cluster than the one that made this key", addr)
		}
		last = err
	}
	return joinReply{}, model.Errorf(model.ErrUnavailable, "no member of cluster %s could be asked: %v: is the network up, and the cluster at these addresses? If so, make a new key with `sauh cluster key` on a member", k.Cluster, last)
}

func reachable(ctx context.Context, addr string) bool {
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// refusal is a member's answer that it does not let this node in.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

func postJoin(ctx context.Context, fingerprint, addr string, r joinRequest) (joinReply, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return joinReply{}, model.Invalidf("key", "the join key is damaged: %v: copy it again", err)
	}
	tr := &http.Transport{
		TLSClientConfig: certs.ClientByFingerprint(fingerprint, host, nil),
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	r.Time = time.Now().UnixNano()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+"/api2/json/sauh/join", bytes.NewReader(mustJSON(r)))
	if err != nil {
		return joinReply{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return joinReply{}, err
	}
	defer resp.Body.Close()
	var out peerAnswer[joinReply]
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&out); err != nil {
		return joinReply{}, fmt.Errorf("%s: %w", addr, err)
	}
	if out.Error != "" {
		return joinReply{}, &refusal{model.FromKind(out.Kind, out.Error)}
	}
	return out.Data, nil
}
