package agent

import (
	"encoding/json"
	"errors"
	"testing"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp/qmptest"
)

// The guest does not listen to its power button, so it would be stopped hard after a minute.
func TestAStopThatIsNotWantedAnyMoreEndsAndTheGuestRunsOn(t *testing.T) {
	for name, next := range map[string]string{
		"started": "vm: 100\n\tstate started\n",
		"ignored": "vm: 100\n\tstate ignored\n",
		"removed": "",
	} {
		t.Run(name, func(t *testing.T) {
			n, _, _ := startNode(t)
			n.put(haResourcesKey, "vm: 100\n\tstate disabled\n")
			n.runsAs(aRunningGuest())
			room := qmptest.NewRoom()
			t.Cleanup(room.Close)
			pressed := make(chan struct{})
			q := room.Start("n1")
			q.Handle("system_powerdown", func(json.RawMessage) (any, error) { close(pressed); return struct{}{}, nil })
			must(t, q.Listen(t.Context(), n.m.procs.get(100).Spec().QMPSocket()))
			answer := make(chan error, 1)
			go func() {
				_, err := n.m.worker.do(t.Context(), ha.Stop{VMID: 100, Reason: "the requested state is disabled"})
				answer <- err
			}()
			<-pressed
			n.put(haResourcesKey, "vm: 100\n\tstate stopped\n") // that changes nothing,
			n.put(haResourcesKey, "vm: 7\n")                    // and what cannot be read says nothing
			select {
			case err := <-answer:
				t.Fatalf("the stop ended although it is still wanted: %v", err)
			default:
			}
			n.put(haResourcesKey, next)
			if err := <-answer; !errors.Is(err, model.ErrConflict) {
				t.Errorf("the stop ended with %v", err)
			}
			if p := n.m.procs.get(100); p == nil || !p.Running() {
				t.Error("the guest was stopped")
			}
			if held := n.m.worker.locks.holders(); len(held) > 0 {
				t.Errorf("the guest's lock is still held: %v", held)
			}
		})
	}
}
