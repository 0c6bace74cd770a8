package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
)

const (
	// moves by Sauh, and as many by hand.
	moves = 6
	// settle is how long after a move's end its window still lasts: a gap may begin late, when a switch
	// forgets where the guest is or the target translates code anew.
	settle = time.Second
	// answerAfterMove is when a guest that was moved counts as lost.
	answerAfterMove = 30 * time.Second
	// shown is how much of the echo around a gap the report draws.
	shownBefore = 800 * time.Millisecond
	shownAfter  = 1200 * time.Millisecond
)

// moveBackAndForth moves guest 100 to the node away and back. Each move has a twin by hand right before or after
// it, in turns, so that both see the same noise of the machine.
func (d *demo) moveBackAndForth(ctx context.Context) error {
	home, err := d.machines.where(ctx, d.run.Nodes[0], d.moving.id)
	if err != nil {
		return err
	}
	c, err := d.cast(ctx)
	if err != nil {
		return err
	}
	at, to := home, c.away
	if to == home {
		to = c.home
	}
	var errs []error
	for n := range moves {
		pair, err := d.movePair(ctx, n, at, to)
		d.run.Migrations = append(d.run.Migrations, pair)
		d.tellPair(n, pair)
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
		if err := d.checkLedger(ctx, d.moving, fmt.Sprintf("move %d", n+1)); err != nil {
			errs = append(errs, err)
		}
		if now, err := d.machines.where(ctx, d.run.Nodes[0], d.moving.id); err == nil && now == to {
			at, to = to, at
		}
	}
	return errors.Join(errs...)
}

func (d *demo) movePair(ctx context.Context, n int, from, to string) (pair report.Migration, err error) {
	sauh := func() (err error) {
		pair.Sauh, err = d.measureMove(ctx, d.moving, from, to, d.moveBySauh)
		return err
	}
	hand := func() (err error) {
		target := to
		if d.byHandAt == to { // a move before this one failed
			target = from
		}
		pair.Hand, err = d.measureMove(ctx, d.byHand, d.byHandAt, target, d.moveByHand)
		return err
	}
	first, second := sauh, hand
	if n%2 == 1 {
		first, second = hand, sauh
	}
	err = errors.Join(first(), second())
	return pair, err
}

// mover moves a guest and returns QEMU's own count of the time from stop to resume.
type mover func(ctx context.Context, from, to string) (downtime time.Duration, err error)

// measureMove makes a move and cuts its window out of the echo.
func (d *demo) measureMove(ctx context.Context, g *guest, from, to string, do mover) (report.Move, error) {
	m := report.Move{From: from, To: to, Begin: d.clock.now()}
	var err error
	m.Downtime, err = do(ctx, from, to)
	m.End = d.clock.now()
	d.span("moves", report.Span{From: m.Begin, To: m.End, Kind: "move", Label: fmt.Sprintf("%s %s → %s", g.name(), from, to)})
	if err != nil {
		m.Err = err.Error()
		return m, fmt.Errorf("move %s from %s to %s: %w", g.name(), from, to, err)
	}
	d.place(g, to, m.End)
	if err := rest(ctx, settle); err != nil {
		return m, err
	}
	// A gap that has no end yet is measured to its end.
	if err := g.awaitAnswer(ctx, answerAfterMove); err != nil {
		m.Err = err.Error()
		return m, fmt.Errorf("move %s from %s to %s: %w", g.name(), from, to, err)
	}
	d.cutOut(g, &m)
	return m, nil
}

// cutOut fills in what the echo says of a move.
func (d *demo) cutOut(g *guest, m *report.Move) {
	gaps := probe.Gaps(g.echo.series(), d.clock.boot(m.Begin), d.clock.boot(m.End+settle))
	m.Gap, m.GapAt, m.Sent, m.Lost = gaps.Longest, d.clock.of(gaps.Begin), gaps.Sent, gaps.Lost
	m.Echo = d.echoes(g, m.GapAt-shownBefore, m.GapAt+m.Gap+shownAfter)
}

// closeUps cuts all windows out of the complete series: an echo is known to be lost only seconds after it was sent.
func (d *demo) closeUps() {
	for i := range d.run.Migrations {
		p := &d.run.Migrations[i]
		for m, g := range map[*report.Move]*guest{&p.Sauh: d.moving, &p.Hand: d.byHand} {
			if m.Made() {
				d.cutOut(g, m)
			}
		}
	}
	for i := range d.run.Failovers {
		d.closeUp(&d.run.Failovers[i])
	}
}

// echoes are a part of a guest's series as the report draws it.
func (d *demo) echoes(g *guest, from, to time.Duration) []report.Echo {
	var out []report.Echo
	for _, s := range g.echo.between(d.clock.boot(from), d.clock.boot(to)) {
		e := report.Echo{At: d.clock.of(s.Sent), Trip: s.Recv - s.Sent}
		if s.Recv == 0 {
			e.Trip = -1
		}
		out = append(out, e)
	}
	return out
}

// moveBySauh asks the source's agent, as `sauh vm migrate --online` does.
func (d *demo) moveBySauh(ctx context.Context, from, to string) (time.Duration, error) {
	return d.migrate(ctx, d.moving, from, to)
}

func (d *demo) migrate(ctx context.Context, g *guest, from, to string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, taskLimit)
	defer cancel()
	c := d.machines.on(from)
	upid, err := c.MigrateGuest(ctx, from, g.id, to, true)
	if err != nil {
		return 0, err
	}
	var last model.MigrationProgress
	err = c.WaitTask(ctx, upid, nil, func(p model.MigrationProgress) { last = p })
	return time.Duration(last.DowntimeMS) * time.Millisecond, err
}

func (d *demo) tellPair(n int, p report.Migration) {
	d.tell("move %d of %d: %s → %s  %s by Sauh, %s by hand", n+1, moves, p.Sauh.From, p.Sauh.To, sayMove(p.Sauh), sayMove(p.Hand))
}

func sayMove(m report.Move) string {
	if !m.Made() {
		return "failed"
	}
	return fmt.Sprintf("gap %d ms in %.1f s", m.Gap.Milliseconds(), m.Total().Seconds())
}
