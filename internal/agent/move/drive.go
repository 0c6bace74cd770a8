package move

import (
	"context"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
)

// driver runs one of the machines: it feeds an event, carries out what comes of
// it, feeds the results, until nothing is left.
type driver struct {
	began time.Time
	step  func(now time.Duration, ev migrate.Event) []migrate.Action
	do    func(ctx context.Context, a migrate.Action) migrate.Event // nil: no result
}

// feed returns the Finish when the machine ended, and ErrAbandoned or ctx's cause when ctx did.
func (d *driver) feed(ctx context.Context, evs ...migrate.Event) (*migrate.Finish, error) {
	for len(evs) > 0 {
		ev := evs[0]
		evs = evs[1:]
		for _, a := range d.step(time.Since(d.began), ev) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if fin, ok := a.(migrate.Finish); ok {
				return &fin, nil
			}
			if result := d.do(ctx, a); result != nil {
				evs = append(evs, result)
			}
		}
	}
	return nil, nil
}
