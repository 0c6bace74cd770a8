package beacon_test

import (
	"fmt"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
)

// BenchmarkASecondOf256Nodes is what one node of 256 with 20,000 guests does in a second, without the kernel's part.
func BenchmarkASecondOf256Nodes(b *testing.B) {
	const nodes, each = 256, 78
	now := 1000 * sec
	d := beacon.NewDetector(now, "n0", "b1", nil)
	var names []string
	recorders := make([]*beacon.Recorder, nodes)
	running := make([][]beacon.Guest, nodes)
	for n := range nodes {
		names = append(names, fmt.Sprintf("n%d", n))
		recorders[n] = &beacon.Recorder{}
		for i := range each {
			running[n] = append(running[n], beacon.Guest{VMID: model.VMID(100 + n*each + i), Epoch: 3, Revision: 1000})
		}
	}
	d.Step(now, beacon.Members{Names: names})
	seq := uint64(1)
	for b.Loop() {
		for range time.Second / beacon.Beat {
			now += beacon.Beat
			seq++
			var in [][]byte
			b.StopTimer()
			for n := 1; n < nodes; n++ {
				recorders[n].Sample(now, running[n])
				m := beacon.Message{From: names[n], To: "n0", Boot: "b", Seq: seq, Sent: now, Sampled: now, Echo: beacon.Echo{Boot: "b1", Sent: now, Arrived: now}, Claims: recorders[n].Beat()}
				in = append(in, beacon.Seal(m, secret(1)))
				m.Network = beacon.Cluster
				in = append(in, beacon.Seal(m, secret(1)))
			}
			b.StartTimer()
			for _, data := range in {
				m, err := beacon.Open(data, []beacon.Key{secret(1)})
				if err != nil {
					b.Fatal(err)
				}
				d.Step(now, beacon.Datagram{Network: m.Network, Message: m})
			}
			recorders[0].Sample(now, running[0])
			d.Step(now, beacon.Look{Claims: recorders[0].All()})
			claims := recorders[0].Beat()
			for n := 1; n < nodes; n++ {
				for k := range beacon.Network(2) {
					beacon.Seal(beacon.Message{Network: k, From: "n0", To: names[n], Boot: "b1", Seq: seq, Sent: now, Sampled: now, Echo: d.Echo(names[n]), Claims: claims}, secret(1))
				}
			}
		}
	}
	if d.Counters().Alarms > 0 || d.Counters().Accepted == 0 {
		b.Fatal(d.Counters())
	}
}
