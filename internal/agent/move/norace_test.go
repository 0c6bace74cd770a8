//go:build !race

package move

const everyPoint = 1
