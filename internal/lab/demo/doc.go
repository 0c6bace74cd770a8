// Package demo is the demonstration: one script that builds a machine room, makes a cluster of
// it, moves a guest while it runs, cuts the power of two nodes, and judges what the probes saw.
//
// It measures from outside: it asks agents only what any client may ask, and believes the probes
// where both could answer. It draws nothing (that is lab/report) and no production code knows of it.
//
// Invariants: what was not measured is never a pass; each step that went wrong makes the verdict "fail"
// and is named; the room is gone when [Run] returns, whatever happened, unless it shall be kept. The exact
// definitions of what is measured stand in DESIGN.md and, with the run's own numbers, in every report.
// Start reading with [Run] and demo.story.
package demo
