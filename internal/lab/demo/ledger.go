package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
)

// verifyLimit bounds the reading of a whole ledger, some MiB out of an emulated guest.
const verifyLimit = 60 * time.Second

// ledgerEvery: a record costs an emulated guest 2 ms of CPU, and three guests share two cores.
const ledgerEvery = 25 * time.Millisecond

// ledger is the client of a guest's ledger. It is stopped while the ledger is verified, and goes on
// in a record of its own afterwards.
type ledger struct {
	*prober
	files []string
}

func (d *demo) startLedger(g *guest) error {
	if g.ledger == nil {
		g.ledger = &ledger{}
	}
	name := fmt.Sprintf("ledger-%s-%02d.jsonl", g.id, len(g.ledger.files)+1)
	p, err := d.startProber(name, nil, "ledger", "--target", g.address(), "--interval", ledgerEvery.String())
	if err != nil {
		return err
	}
	d.needs(p)
	g.ledger.prober = p
	g.ledger.files = append(g.ledger.files, p.file.Name())
	return nil
}

// checkLedger compares everything that the guest ever acknowledged with what is on its disk, and lets the client go on.
// What it finds is a matter of the verdict; an error means that it could not be found out.
func (d *demo) checkLedger(ctx context.Context, g *guest, after string) error {
	if err := g.ledger.stop(); err != nil {
		return fmt.Errorf("ledger client of %s: %w", g.name(), err)
	}
	check := report.LedgerCheck{Guest: g.name(), After: after}
	v, err := d.verify(ctx, g)
	if err != nil {
		check.Err = err.Error()
	}
	check.At = d.clock.now()
	check.Acknowledged, check.Lost, check.Unknown = v.Acknowledged, v.Lost, v.Unacknowledged
	check.Wrong = v.Wrong + v.Twice + len(v.Chain.Problems)
	d.run.Ledger = append(d.run.Ledger, check)
	switch {
	case err != nil:
		err = fmt.Errorf("verify the ledger of %s: %w", g.name(), err)
	case !check.OK():
		err = fmt.Errorf("ledger of %s: of %d acknowledged records %d are lost and %d wrong: %+v", g.name(), check.Acknowledged, check.Lost, check.Wrong, v.Faults)
	}
	if again := d.startLedger(g); err == nil {
		err = again
	}
	return err
}

// verify runs the verifier in the room. Its exit status repeats what its answer says.
func (d *demo) verify(ctx context.Context, g *guest) (v probe.Verdict, err error) {
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	args := append([]string{"sauh", "lab", "probe", "verify", "--target", g.address()}, g.ledger.files...)
	cmd := d.room.Exec(ctx, lab.RoomName, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	runErr := cmd.Run()
	if out.Len() == 0 {
		return v, fmt.Errorf("%w: %s", runErr, bytes.TrimSpace(said.Bytes()))
	}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		return v, fmt.Errorf("answer of the verifier for %s: %w", filepath.Base(g.ledger.files[0]), err)
	}
	return v, nil
}
