// Package report turns the data of one demonstration run into summary.json and
// report.html, a page that needs no network and no script.
//
// It measures nothing and judges nothing: what it shows, the verdicts included, is in the [Run] that it
// is given, and what is missing there is shown as missing. It touches no file.
//
// Invariant: the same Run gives the same bytes. Start reading with [Run], then [Summary] and [HTML].
package report
