package sim

import (
	"bytes"
	"testing"
)

func TestALifeWithoutFaultsBreaksNoRule(t *testing.T) {
	for seed := range uint64(40) {
		r := Run(Options{Seed: seed, Given: true})
		if r.Violation != nil {
			t.Fatalf("seed %d: %s", seed, r.Violation)
		}
		if r.Cuts+r.Moves+r.Resets > 0 {
			t.Errorf("seed %d: %d cuts, %d moves, %d resets in a life without faults", seed, r.Cuts, r.Moves, r.Resets)
		}
	}
}

func TestALifeIsTheSameEachTime(t *testing.T) {
	for seed := range uint64(10) {
		var a, b bytes.Buffer
		Run(Options{Seed: seed, Trace: &a})
		Run(Options{Seed: seed, Trace: &b})
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("seed %d has two lives", seed)
		}
	}
}

func BenchmarkLife(b *testing.B) {
	seed := uint64(0)
	for b.Loop() {
		Run(Options{Seed: seed})
		seed++
	}
}
