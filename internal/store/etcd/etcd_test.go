package etcd

import (
	"testing"

	"sauh.dev/sauh/internal/store/storetest"
)

func TestEtcdKeepsTheContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Cluster {
		c := newCluster(t, 3)
		c.start(t, 0, 1, 2)
		c.losing(c.servers[0])
		return c
	})
}
