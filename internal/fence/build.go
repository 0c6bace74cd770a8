package fence

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence/ceph"
	"sauh.dev/sauh/internal/fence/ipmi"
	"sauh.dev/sauh/internal/fence/redfish"
)

// Node is what has to be known of the node that may be shot.
type Node struct {
	Name string
	// UUID is the machine's own, sys.SystemUUID on that machine; "" if it is not known.
	UUID string
	// Addresses are all its IP addresses, for the storage.
	Addresses []string
	// Guests are those under its path, with their disks.
	Guests []fence.Guest
	// RBD are the storages of storage.cfg that are RBD and that guests can use.
	RBD []string
}

// Env is what the methods need of the agent.
type Env struct {
	// Secret reads a file of the configuration, "priv/fence/n2".
	Secret func(path string) (string, error)
	// Rehearsal is the last one of a method by its name; the zero value for none.
	Rehearsal func(method string) fence.Rehearsal
	// Run runs a program; sys.Output does.
	Run func(ctx context.Context, argv ...string) ([]byte, error)
	// Now is CLOCK_BOOTTIME, Wall the date.
	Now  func() time.Duration
	Wall func() time.Time
}

// Build makes the set of a node out of ha/fence.cfg. Nothing is sent to anybody. A method that cannot be made, for want of its
// password for example, is there all the same and says why when it is used. Guests and addresses are those of the
// moment: build it anew when a node is suspected.
func Build(cfg []pveconf.FenceMethod, n Node, env Env) *Set {
	var methods []Method
	for _, c := range cfg {
		if !c.For(n.Name) {
			continue
		}
		m, err := method(c, n, env)
		if err != nil {
			m.Fencer = broken{err}
		}
		methods = append(methods, m)
	}
	var guests []model.VMID
	for _, g := range n.Guests {
		guests = append(guests, g.VMID)
	}
	return NewSet(n.Name, guests, env.Now, methods...)
}

func method(c pveconf.FenceMethod, n Node, env Env) (Method, error) {
	m := Method{
		Method: fence.Method{Name: c.Name(), Node: n.Name, Kind: fence.Power, UUID: n.UUID, Gap: c.VerifyGap},
		Order:  c.Order, Delay: c.Delay, AskTimeout: c.AskTimeout, Timeout: c.Timeout,
	}
	switch c.UUID {
	case "":
	case "any":
		m.UUID, m.AnyUUID = "", true
	default:
		m.UUID = c.UUID
	}
	if env.Rehearsal != nil {
		m.Rehearsal = env.Rehearsal(m.Name)
	}
	text, err := c.Text()
	if err != nil {
		return m, err
	}
	// A node with another machine is another method: what was rehearsed was the old one.
	m.Digest = fence.Digest(fmt.Appendf(text, "%s %s", n.Name, m.UUID))
	if c.Type == pveconf.FenceCeph {
		m.Kind = fence.Storage
		if !slices.ContainsFunc(c.Storages, func(s string) bool { return slices.Contains(n.RBD, s) }) {
			m.Useless = NoRBD(c.Storages)
		}
		b := ceph.New(ceph.Config{
			Node: n.Name, Addresses: n.Addresses, Guests: n.Guests, Storages: c.Storages, Conf: c.Conf, User: c.CephUser,
			Run: env.Run, Now: env.Now, Wall: env.Wall,
		})
		m.Fencer, m.Release = b, b.Release
		return m, nil
	}
	password, err := env.Secret(c.PasswordFile)
	if err != nil {
		return m, fmt.Errorf("read the password of %s: %w", m.Name, err)
	}
	password = strings.TrimRight(password, "\r\n")
	var bmc BMC
	switch c.Type {
	case pveconf.FenceIPMI:
		bmc = ipmi.New(ipmi.Config{Address: c.Address, User: c.User, Password: password, Cipher: c.Cipher, Now: env.Now})
	case pveconf.FenceRedfish:
		bmc = redfish.New(redfish.Config{
			Address: c.Address, User: c.User, Password: password, Fingerprint: c.Fingerprint,
			System: c.System, Session: c.Session, Now: env.Now,
		})
	default:
		return m, fmt.Errorf("%s: this version has no driver for it", m.Name)
	}
	m.Fencer = Power(bmc, m.Method)
	return m, nil
}

// NoRBD says of a method by Ceph why it has no effect.
func NoRBD(storages []string) string {
	return fmt.Sprintf("it has no effect, because none of its storages (%s) is an rbd storage that guests can use", strings.Join(storages, ", "))
}

// broken is a method that could not be made.
type broken struct{ err error }

func (b broken) Ask(context.Context) (fence.Evidence, error)   { return fence.Evidence{}, b.err }
func (b broken) Shoot(context.Context) (fence.Evidence, error) { return fence.Evidence{}, b.err }
func (b broken) Rehearse(context.Context) error                { return b.err }
