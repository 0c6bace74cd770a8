package sim

import (
	"context"
	"runtime/debug"
	"sync"
	"time"
)

// Summary is what came of many lives.
type Summary struct {
	Seeds    int          `json:"seeds"`
	First    uint64       `json:"first_seed"`
	Broken   []Result     `json:"broken,omitempty"`
	Injected map[Kind]int `json:"injected"`
	Faults   int          `json:"faults"`
	Hours    float64      `json:"simulated_hours"`
	// HoursPerSecond is simulated time per second of the wall clock.
	HoursPerSecond float64 `json:"simulated_hours_per_second"`
	LivesPerSecond float64 `json:"lives_per_second"`
	Seconds        float64 `json:"seconds"`
	Events         int     `json:"events"`
	Cuts           int     `json:"cuts"`
	Moves          int     `json:"moves"`
	Resets         int     `json:"resets"`
	Shots          int     `json:"shots"`
	LateWrites     int     `json:"late_writes"`
}

// Many says which lives to live.
type Many struct {
	First   uint64
	Seeds   int // 0: until ctx is done
	Workers int
	// Stop ends at the first broken rule.
	Stop     bool
	Mutation string
	// Now is the wall clock, for the report.
	Now func() time.Time
	// Progress, if not nil, is told of each life, by one goroutine at a time.
	Progress func(Result)
}

// Live lives them, each seed by itself, several at a time, and returns when all are done or ctx is. Broken lives are in the order of their seeds
// as far as Stop lets.
func (m Many) Live(ctx context.Context) Summary {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// A life is 10 MB of garbage and a heap of one: collecting it seldom costs nothing but that.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	sum := Summary{First: m.First, Injected: map[Kind]int{}}
	began := m.Now()
	seeds := make(chan uint64)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range max(1, m.Workers) {
		wg.Go(func() {
			for seed := range seeds {
				r := Run(Options{Seed: seed, Mutation: m.Mutation})
				mu.Lock()
				sum.add(r)
				if m.Progress != nil {
					m.Progress(r)
				}
				if r.Violation != nil && m.Stop {
					stop()
				}
				mu.Unlock()
			}
		})
	}
feed:
	for i := 0; m.Seeds == 0 || i < m.Seeds; i++ {
		select {
		case seeds <- m.First + uint64(i):
		case <-ctx.Done():
			break feed
		}
	}
	close(seeds)
	wg.Wait()
	sum.Seconds = m.Now().Sub(began).Seconds()
	if sum.Seconds > 0 {
		sum.HoursPerSecond, sum.LivesPerSecond = sum.Hours/sum.Seconds, float64(sum.Seeds)/sum.Seconds
	}
	return sum
}

func (s *Summary) add(r Result) {
	s.Seeds++
	for k, n := range r.Injected {
		s.Injected[k] += n
		s.Faults += n
	}
	s.Hours += r.Length.Hours()
	s.Events += r.Events
	s.Cuts += r.Cuts
	s.Moves += r.Moves
	s.Resets += r.Resets
	s.Shots += r.Shots
	s.LateWrites += r.LateWrites
	if r.Violation != nil {
		i := len(s.Broken)
		for i > 0 && s.Broken[i-1].Seed > r.Seed {
			i--
		}
		s.Broken = append(s.Broken, Result{})
		copy(s.Broken[i+1:], s.Broken[i:])
		s.Broken[i] = r
	}
}

// Shrink leaves out faults of a broken life as long as the same rule breaks, and returns the life with the fewest.
func Shrink(o Options, r Result) Result {
	if r.Violation == nil {
		return r
	}
	o.Trace, o.Given = nil, true
	best := r
	for size := max(1, len(best.Plan.Faults)/2); size >= 1; {
		smaller := false
		for from := 0; from+size <= len(best.Plan.Faults); {
			o.Faults = append(append([]Fault{}, best.Plan.Faults[:from]...), best.Plan.Faults[from+size:]...)
			if next := Run(o); next.Violation != nil && next.Violation.Rule == r.Violation.Rule {
				best, smaller = next, true
				continue
			}
			from += size
		}
		if !smaller || size > len(best.Plan.Faults) {
			size /= 2
		}
	}
	return best
}

// Find plants a bug and returns the first life that finds it: the seed of the table, else the first of seeds.
func Find(ctx context.Context, m Mutation, seeds, workers int) (Result, bool) {
	if r := Run(Options{Seed: m.Seed, Mutation: m.Name}); r.Violation != nil {
		return r, true
	}
	const batch = 64
	for first := 0; first < seeds && ctx.Err() == nil; first += batch {
		sum := Many{First: uint64(first), Seeds: min(batch, seeds-first), Workers: workers, Mutation: m.Name, Now: time.Now}.Live(ctx)
		if len(sum.Broken) > 0 {
			return sum.Broken[0], true
		}
	}
	return Result{}, false
}
