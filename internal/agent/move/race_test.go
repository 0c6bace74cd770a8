//go:build race

package move

// The race detector makes everything ten times slower: every fourth point is enough to find races.
const everyPoint = 4
