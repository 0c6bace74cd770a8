package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"

	"sauh.dev/sauh/internal/core/model"
)

func TestANodeIsNotBlamedForWhoGaveUpAsking(t *testing.T) {
	n := newNode(t)
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Mgmt: "127.0.0.1", Cluster: "127.0.0.1"})))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := callPeer[struct{}](ctx, newPeers("n1", n.a.log, n.m.roster, &tls.Config{}), "n2", "guests", struct{}{})
	if !errors.Is(err, context.Canceled) || errors.Is(err, model.ErrUnavailable) {
		t.Errorf("answered with %v", err)
	}
}
