package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
)

func TestAMemberThatIsStartingIsNoFreshNode(t *testing.T) {
	a := newAgentAt(t)
	p := a.opts.Paths
	must(t, os.MkdirAll(p.storeData(), 0o700))
	must(t, saveJSON(p.membership(), Membership{Node: model.Node{Name: "n1"}, Cluster: model.Cluster{Name: "test"}}))
	const want = "this node is a member of cluster test, and its agent is just starting or stopping: try again in a moment"
	c := a
	_, err := c.Status(t.Context())
	refused(t, err, model.ErrUnavailable, want)
	refused(t, c.Create(t.Context(), api.CreateClusterRequest{Name: "other"}), model.ErrUnavailable, want)
	refused(t, c.Join(t.Context(), testKey().encode(), ""), model.ErrUnavailable, want)
	refused(t, c.Leave(t.Context(), ""), model.ErrUnavailable, want)
	if _, err := os.Stat(p.storeData()); err != nil {
		t.Errorf("the store's data: %v", err)
	}
}

// The guard and the agent have a constant each.
func TestAgentAndGuardMeetAtTheSameSocket(t *testing.T) {
	if got := DefaultPaths().guardSocket(); got != guard.DefaultSocket {
		t.Errorf("the agent uses %s and the guard %s", got, guard.DefaultSocket)
	}
}

func TestANodeThatIsNoMemberShowsItsGuard(t *testing.T) {
	n := newNode(t)
	n.a.current.Store(nil)
	in, err := n.a.Info(t.Context())
	if err != nil || in.Guard.Connected || in.ClusterMember {
		t.Errorf("without a guard: %+v %v", in.Guard, err)
	}
	n.startGuard().has()
	in, err = n.a.Info(t.Context())
	if err != nil || !in.Guard.Connected {
		t.Errorf("with one: %+v %v", in.Guard, err)
	}
}

// An agent that ended between the first and the last file that it wiped.
func TestTheRestOfAMembershipThatWasBeingWipedIsWiped(t *testing.T) {
	a := newAgentAt(t)
	p := a.opts.Paths
	rest := filepath.Join(p.storeData(), "member", "snap")
	for _, member := range []bool{true, false} {
		must(t, os.MkdirAll(rest, 0o700))
		if member {
			must(t, saveJSON(p.membership(), Membership{Node: model.Node{Name: "n1"}}))
		} else {
			must(t, os.Remove(p.membership()))
		}
		again, err := newAgent(t.Context(), a.opts)
		must(t, err)
		again.tasks.Stop(errors.New("the test ends"))
		if _, err := os.Stat(rest); member != (err == nil) {
			t.Errorf("a member %t: the store's data: %v", member, err)
		}
	}
}
