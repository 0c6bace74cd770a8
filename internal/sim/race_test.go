//go:build race

package sim

// raced: the race detector makes a life eight times as long, and finds what it can find in few.
const raced = true
