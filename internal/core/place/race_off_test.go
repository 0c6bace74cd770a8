//go:build !race

package place_test

const raceEnabled = false
