package agent

import (
	"crypto/tls"
	"testing"

	"sauh.dev/sauh/internal/api/apitest"
	"sauh.dev/sauh/internal/core/model"
)

func TestTheAgentKeepsTheContractOfTheAPI(t *testing.T) {
	apitest.Run(t, func(t *testing.T) apitest.World {
		n, _, _ := startNode(t)
		n.m.roles.Peers.(*peers).tlsClient = &tls.Config{MinVersion: tls.VersionTLS13}
		n.storage("nas", "\tshared 1\n")
		n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Votes: 1, Mgmt: "10.0.0.2", Cluster: "10.0.1.2"})))
		n.put(model.GuestConfigKey("n2", 102), "name: mail\n")
		return apitest.World{Backend: n.m.roles, Own: 100, Other: 102, Free: 999, Storage: "nas", Member: "n2", Settle: n.follow}
	})
}
