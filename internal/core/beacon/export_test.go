package beacon

// Sign signs any bytes, as somebody could who has the key.
func Sign(b []byte, k Key) []byte { return sign(b, k) }

// Runs counts the runs that are remembered.
func (d *Detector) Runs() int {
	n := 0
	for _, runs := range d.guests {
		n += len(runs)
	}
	return n
}
