package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/image"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
)

const (
	// memoryMiB of each guest: what the probe guest needs, with room for what it serves.
	memoryMiB = "256"
	// joinKeyLife is far longer than a join takes.
	joinKeyLife = 10 * time.Minute
	// agentLimit: an agent answers within a second of its start; this allows for a busy machine.
	agentLimit = 30 * time.Second
	// accelLimit: finding out how guests can run boots a small one, up to 10 s each way.
	accelLimit = 60 * time.Second
	// bootLimit of a guest: 2 to 4 s under TCG on a quiet machine, many times that on a busy one.
	bootLimit = 90 * time.Second
	taskLimit = 90 * time.Second
	// storageName is as in the installation instructions.
	storageName = "nas"
)

// guest is one of the probe guests, and what measures it.
type guest struct {
	id     model.VMID
	echo   *echo
	stream *stream
	files  *downloads
	ledger *ledger
}

// The three guests: the one that moves, the one that loses its node, and the one that no agent knows.
const (
	movingID    model.VMID = 100
	movingName             = "guest 100"
	failingID   model.VMID = 101
	failingName            = "guest 101"
	byHandID    model.VMID = 102
)

func newGuest(id model.VMID) *guest { return &guest{id: id} }

func (g *guest) name() string { return "guest " + g.id.String() }

// address is the guest's own, in the management network.
func (g *guest) address() string { return "10.10.1." + g.id.String() }

func (g *guest) config() image.Config {
	return image.Config{
		IP: netip.MustParsePrefix(g.address() + "/24"), Gateway: netip.MustParseAddr(lab.RoomAddress), Hostname: "probe" + g.id.String(),
	}
}

func (d *demo) buildImage(ctx context.Context) error {
	var err error
	d.image, err = image.Build(ctx, image.Options{Guest: d.GuestBinary})
	return err
}

// bringUp builds the room and waits for the agents.
func (d *demo) bringUp(ctx context.Context) error {
	if err := d.removeOldRoom(ctx); err != nil {
		return err
	}
	r, err := lab.Up(ctx, lab.Config{Name: d.Name})
	if err != nil {
		return err
	}
	d.room = r
	if d.machines, err = newMachines(ctx, r); err != nil {
		return err
	}
	d.run.Nodes = d.machines.names()
	for _, n := range d.run.Nodes {
		err := await(ctx, "the agent of "+n, agentLimit, 50*time.Millisecond, func(ctx context.Context) error {
			_, err := d.machines.on(n).Version(ctx)
			return err
		})
		if err != nil {
			return err
		}
		d.span(n, report.Span{From: d.clock.now(), Kind: "on"})
	}
	d.inBackground("measure the nodes' load", d.watchLoad)
	return nil
}

// removeOldRoom clears what a demonstration left that was killed or kept.
func (d *demo) removeOldRoom(ctx context.Context) error {
	if _, err := lab.Open(ctx, d.Name); errors.Is(err, model.ErrNotFound) {
		// The data of a room that is gone would bring its cluster back.
		_, err = lab.Down(ctx, d.Name, false)
		return err
	}
	d.tell("removing the room %s of an earlier run", d.Name)
	_, err := lab.Down(ctx, d.Name, false)
	return err
}

// formCluster creates, joins, and waits until all three agree.
func (d *demo) formCluster(ctx context.Context) error {
	first := d.run.Nodes[0]
	if err := d.createCluster(ctx, first); err != nil {
		return err
	}
	for _, n := range d.run.Nodes[1:] {
		key, err := d.machines.on(first).ClusterKey(ctx, joinKeyLife)
		if err != nil {
			return fmt.Errorf("make a join key on %s: %w", first, err)
		}
		if err := d.machines.on(n).Join(ctx, key.Key, ""); err != nil {
			return fmt.Errorf("%s joins: %w", n, err)
		}
		d.tell("%s joined", n)
	}
	if err := await(ctx, "a quorate cluster of all nodes", agentLimit, 100*time.Millisecond, d.machines.allComplete); err != nil {
		return err
	}
	d.inBackground("poll the quorum", d.watchQuorum)
	if err := d.awaitAccel(ctx); err != nil {
		return err
	}
	return d.showQuorum(ctx)
}

func (d *demo) createCluster(ctx context.Context, node string) error {
	return await(ctx, "create the cluster on "+node, agentLimit, 200*time.Millisecond, func(ctx context.Context) error {
		err := d.machines.on(node).CreateCluster(ctx, api.CreateClusterRequest{Name: d.Name})
		if errors.Is(err, model.ErrExists) {
			return nil // an attempt whose answer was lost
		}
		return err
	})
}

// awaitAccel waits until each node knows how it can run guests.
func (d *demo) awaitAccel(ctx context.Context) error {
	for _, n := range d.run.Nodes {
		err := await(ctx, "the accelerator of "+n, accelLimit, 250*time.Millisecond, func(ctx context.Context) error {
			in, err := d.machines.on(n).NodeInfo(ctx, client.LocalNode)
			if err == nil && in.Accel == "" {
				err = errors.New("it is still being found out")
			}
			d.run.Host.Accel, d.run.Host.QEMU = in.Accel, in.QEMU
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) showQuorum(ctx context.Context) error {
	st, err := d.machines.status(ctx, d.run.Nodes[0])
	if err != nil {
		return err
	}
	d.tell("cluster %s: %d of %d votes, quorum %d, quorate %s; store leader %s, HA manager %s; QEMU %s with %s",
		st.Name, st.TotalVotes, st.ExpectedVotes, st.Quorum, yesNo(st.Quorate), st.Leader, st.Manager, d.run.Host.QEMU, d.run.Host.Accel)
	return nil
}

func (d *demo) addStorage(ctx context.Context) error {
	first := d.run.Nodes[0]
	params := map[string]string{"type": "dir", "path": "/srv/nas", "shared": "1", "late-writes": "no", "content": "images"}
	if err := d.machines.on(first).AddStorage(ctx, storageName, params); err != nil {
		return err
	}
	for _, n := range d.run.Nodes {
		err := await(ctx, "storage nas on "+n, agentLimit, 100*time.Millisecond, func(ctx context.Context) error {
			list, err := d.machines.on(n).Storages(ctx, client.LocalNode)
			if err == nil && (len(list) != 1 || !list[0].Active) {
				err = fmt.Errorf("%s sees %+v", n, list)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startGuests puts guest 101 on a plain worker and guest 100 on another node, so
// that the first power cut is of a node that is nothing but a worker.
func (d *demo) startGuests(ctx context.Context) error {
	c, err := d.cast(ctx)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		g    *guest
		node string
	}{{d.moving, c.home}, {d.failing, c.worker}} {
		if err := d.createGuest(ctx, p.g, p.node); err != nil {
			return err
		}
		if err := d.startEcho(p.g); err != nil {
			return err
		}
		if err := d.machines.on(p.node).HAAdd(ctx, api.HAResource{SID: p.g.id.SID(), State: "started"}); err != nil {
			return fmt.Errorf("protect %s: %w", p.g.name(), err)
		}
	}
	for _, g := range []*guest{d.moving, d.failing} {
		if err := d.awaitProtected(ctx, g); err != nil {
			return err
		}
		if err := g.awaitAnswer(ctx, bootLimit); err != nil {
			return err
		}
	}
	return nil
}

// cast says which node plays what: worker is neither manager nor leader, home
// and away are the other two, home the one that is not the leader if there is a choice.
type cast struct {
	worker, home, away, leader, manager string
}

func (d *demo) cast(ctx context.Context) (cast, error) {
	st, err := d.machines.status(ctx, d.run.Nodes[0])
	if err != nil {
		return cast{}, err
	}
	c := cast{leader: st.Leader, manager: st.Manager}
	for i := len(d.run.Nodes) - 1; i >= 0; i-- {
		n := d.run.Nodes[i]
		switch {
		case c.worker == "" && n != c.leader && n != c.manager:
			c.worker = n
		case c.home == "" && n != c.leader:
			c.home = n
		default:
			c.away = n
		}
	}
	if c.worker == "" || c.home == "" || c.away == "" {
		return c, fmt.Errorf("three nodes do not suffice for the roles %+v", c)
	}
	return c, nil
}

func (d *demo) createGuest(ctx context.Context, g *guest, node string) error {
	source, err := d.personalImage(g)
	if err != nil {
		return err
	}
	c := d.machines.on(node)
	upid, err := c.CreateGuest(ctx, node, api.CreateGuestRequest{VMID: g.id, Start: true, Params: map[string]string{
		"name": "probe" + g.id.String(), "memory": memoryMiB,
		"virtio0": storageName + ":0,import-from=" + filepath.Join("/srv/nas", filepath.Base(source)),
		"net0":    "virtio,bridge=vmbr0", "serial0": "socket",
	}})
	if err == nil {
		err = waitTask(ctx, c, upid)
	}
	if err != nil {
		return fmt.Errorf("create %s on %s: %w", g.name(), node, err)
	}
	d.tell("%s started on %s", g.name(), node)
	d.place(g, node, d.clock.now())
	return nil
}

// personalImage copies the probe guest's image to the storage with the guest's own address in it.
func (d *demo) personalImage(g *guest) (string, error) {
	path := filepath.Join(d.room.NAS(), "probe"+g.id.String()+".raw")
	if err := os.RemoveAll(path); err != nil {
		return "", err
	}
	if err := image.Copy(path, d.image); err != nil {
		return "", err
	}
	return path, image.Personalize(path, g.config())
}

func waitTask(ctx context.Context, c *client.Client, upid string) error {
	ctx, cancel := context.WithTimeout(ctx, taskLimit)
	defer cancel()
	return c.WaitTask(ctx, upid, nil, nil)
}

// awaitProtected waits until the guest's QEMU is under the guard: from then on it may be taken over.
func (d *demo) awaitProtected(ctx context.Context, g *guest) error {
	return await(ctx, "the protection of "+g.name(), agentLimit, 200*time.Millisecond, func(ctx context.Context) error {
		st, err := d.machines.on(d.run.Nodes[0]).HAStatus(ctx)
		if err != nil {
			return err
		}
		for _, s := range st.Services {
			if s.SID == g.id.SID() && s.Status == "started" {
				return nil
			}
		}
		return fmt.Errorf("its state is %+v", st.Services)
	})
}

// awaitAnswer waits for an echo that is sent from now on.
func (g *guest) awaitAnswer(ctx context.Context, limit time.Duration) error {
	from := probe.Now()
	return await(ctx, "an answer of "+g.name(), limit, 50*time.Millisecond, func(context.Context) error {
		if _, ok := probe.FirstAnswer(g.echo.series(), from); !ok {
			return errors.New("none came")
		}
		return nil
	})
}

// place notes in the timeline where a guest runs from at on; "" is nowhere.
func (d *demo) place(g *guest, node string, at time.Duration) {
	d.endSpan(g.name(), at)
	if node != "" {
		d.span(g.name(), report.Span{From: at, Kind: node, Label: node})
	}
}

// endSpan ends the last span of a lane, if it is open.
func (d *demo) endSpan(lane string, at time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.run.Timeline {
		l := &d.run.Timeline[i]
		if n := len(l.Spans); l.Name == lane && n > 0 && l.Spans[n-1].To == 0 {
			l.Spans[n-1].To = at
		}
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
