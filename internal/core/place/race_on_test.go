//go:build race

package place_test

// raceEnabled: the race detector is on, so times mean nothing.
const raceEnabled = true
