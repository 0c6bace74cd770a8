package etcd

import (
	"errors"
	"testing"
	"time"
)

func TestAMemberThatWasRemovedWhileItWasOffLearnsItWhenItIsBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.start(t, 0, 1, 2)
	eventually(t, "a leader", 10*time.Second, c.servers[0].Quorate)
	id := c.servers[2].MemberID()
	c.stop(t, 2)
	eventually(t, "a leader among the others", 10*time.Second, c.servers[0].Quorate)
	if err := c.servers[0].RemoveMember(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.start(t, 2)
	select {
	case <-c.servers[2].Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the member that was removed does not stop")
	}
	if err := c.servers[2].Err(); !errors.Is(err, ErrRemoved) {
		t.Errorf("Err: %v, want ErrRemoved", err)
	}
}

func TestAMemberCanRemoveItself(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.start(t, 0, 1, 2)
	for i := range 3 {
		eventually(t, "a leader", 10*time.Second, c.servers[i].Quorate)
	}
	s := c.servers[2]
	if s.Leader() == s.MemberID() {
		if err := s.TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveMember(t.Context(), s.MemberID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two voters", 5*time.Second, func() bool { return names(t, c.servers[0]) == "n1, n2" })
}
