package place

import "math"

// The criteria by which nodes and moves are compared, as Proxmox VE weighs them: the root mean square and the maximum of
// the nodes' cpu and memory load.
const (
	avgCPU = iota
	maxCPU
	avgMem
	maxMem
	criteria
)

// weights are the criteria's, in sum 1; less of each criterion is better.
func weights() [criteria]float64 {
	return [criteria]float64{1. / 18, 2. / 18, 5. / 18, 10. / 18}
}

// topsis scores alternatives by their nearness to the best value of each criterion, and their distance from the worst: 0
// to 1, more is better, and 0 if they are all the same. It reads the alternatives twice.
type topsis struct {
	norm, low, high [criteria]float64
	n               int
}

// see takes in an alternative.
func (t *topsis) see(a [criteria]float64) {
	for i, v := range a {
		t.norm[i] += v * v
		if t.n == 0 || v < t.low[i] {
			t.low[i] = v
		}
		if t.n == 0 || v > t.high[i] {
			t.high[i] = v
		}
	}
	t.n++
}

// score is that of an alternative among all that were seen.
func (t *topsis) score(a [criteria]float64) float64 {
	var best, worst float64
	w := weights()
	for i, v := range a {
		norm := math.Sqrt(t.norm[i])
		if norm == 0 {
			continue
		}
		b, x := w[i]*(v-t.low[i])/norm, w[i]*(v-t.high[i])/norm
		best += b * b
		worst += x * x
	}
	best, worst = math.Sqrt(best), math.Sqrt(worst)
	if best+worst == 0 {
		return 0
	}
	return rounded(worst / (best + worst))
}

// rounded drops the digits in which equal things may differ.
func rounded(v float64) float64 {
	const digits = 1e12
	return math.Round(v*digits) / digits
}

// loads is the load of the nodes online, with what makes alternatives cheap to work out.
type loads struct {
	cpu, mem       []float64
	cpu2, mem2     float64 // sums of squares
	topCPU, topMem [3]int  // the highest three, -1 where there are fewer
}

func newLoads(cpu, mem []float64) loads {
	l := loads{cpu: cpu, mem: mem, topCPU: top(cpu), topMem: top(mem)}
	for i := range cpu {
		l.cpu2 += cpu[i] * cpu[i]
		l.mem2 += mem[i] * mem[i]
	}
	return l
}

// top are the indexes of the three highest values.
func top(v []float64) [3]int {
	out := [3]int{-1, -1, -1}
	for i := range v {
		at := i
		for k := range out {
			if at >= 0 && (out[k] < 0 || v[at] > v[out[k]]) {
				at, out[k] = out[k], at
			}
		}
	}
	return out
}

// change is a node whose load becomes another.
type change struct {
	at       int
	cpu, mem float64
}

// alternative works out the criteria with a and b changed; b.at may be -1. 1 is added to each, so that 0.4 % is not
// twice as much as 0.2 %.
func (l *loads) alternative(a, b change) [criteria]float64 {
	n := float64(len(l.cpu))
	cpu2, mem2 := l.cpu2, l.mem2
	hiCPU, hiMem := 0.0, 0.0
	for _, c := range [2]change{a, b} {
		if c.at < 0 {
			continue
		}
		cpu2 += c.cpu*c.cpu - l.cpu[c.at]*l.cpu[c.at]
		mem2 += c.mem*c.mem - l.mem[c.at]*l.mem[c.at]
		hiCPU, hiMem = max(hiCPU, c.cpu), max(hiMem, c.mem)
	}
	hiCPU = max(hiCPU, highest(l.cpu, l.topCPU, a.at, b.at))
	hiMem = max(hiMem, highest(l.mem, l.topMem, a.at, b.at))
	return [criteria]float64{
		avgCPU: 1 + math.Sqrt(max(cpu2, 0)/n), maxCPU: 1 + hiCPU,
		avgMem: 1 + math.Sqrt(max(mem2, 0)/n), maxMem: 1 + hiMem,
	}
}

// highest is the highest of v but for a and b.
func highest(v []float64, top [3]int, a, b int) float64 {
	for _, i := range top {
		if i >= 0 && i != a && i != b {
			return v[i]
		}
	}
	return 0
}
