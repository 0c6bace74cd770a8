package lab

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
)

// BMCUser is the user of every BMC of a room; the password is in BMCStatus.
const BMCUser = "sauh"

// BMCPasswordFile is where a cluster in the room keeps the password: the path that the lines of FenceConfig name.
const BMCPasswordFile = "priv/fence/lab"

// bmcPort is that of HTTPS.
const bmcPort = "443"

// BMCAddress is the address of the i-th node's BMC in the management network, counted from 1.
func BMCAddress(i int) string { return fmt.Sprintf("10.10.1.%d", 64+i) }

// BMCFault is what is wrong with a node's BMC; see the package bmc.
type BMCFault = bmc.Fault

// BMCStatus is a node's BMC.
type BMCStatus struct {
	Address     string   `json:"address"`        // of Redfish, over HTTPS
	IPMI        string   `json:"ipmi,omitempty"` // host:port; "" if the room was built without ipmi_sim
	Fault       BMCFault `json:"fault"`
	UUID        string   `json:"uuid"`        // of the machine
	Fingerprint string   `json:"fingerprint"` // SHA-256 of its certificate
	Password    string   `json:"password"`
}

// controller is the BMC of a node. It runs in the room, outside of the node, on an address of its own, and speaks
// Redfish and IPMI.
type controller struct {
	node    *node
	redfish *bmc.Redfish // it has the faults, for both languages
	server  *http.Server
	address string
	identity

	ipmi *ipmiSim // nil if the program is not installed

	mu sync.Mutex // of address being there or not, and of what ipmi does
}

// identity is what a BMC keeps over the life of a room.
type identity struct {
	Password    string `json:"password"`
	UUID        string `json:"uuid"`
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
	Fingerprint string `json:"fingerprint"`
}

func bmcPath(dir string) string { return filepath.Join(dir, "bmc") }

// newController makes the BMC of a node, with the identity that it had before if the room was kept.
func newController(n *node) (*controller, error) {
	c := &controller{node: n, address: BMCAddress(n.index)}
	path := filepath.Join(bmcPath(n.room.config.Dir), n.name+".json")
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &c.identity)
	} else if errors.Is(err, fs.ErrNotExist) {
		if c.identity, err = newIdentity(c.address); err == nil {
			err = writeJSON(path, c.identity)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make BMC of %s: %w", n.name, err)
	}
	c.redfish = &bmc.Redfish{User: BMCUser, Password: c.Password, Controller: bmc.Controller{Machine: bmcMachine{n}}}
	if c.ipmi, err = newIPMISim(n, c.address, c.Password); err != nil {
		return nil, fmt.Errorf("make IPMI of %s: %w", n.name, err)
	}
	return c, nil
}

func newIdentity(address string) (identity, error) {
	cert, fingerprint, err := bmc.Certificate("bmc", net.ParseIP(address))
	if err != nil {
		return identity{}, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return identity{}, err
	}
	var password [8]byte
	_, _ = rand.Read(password[:]) // never fails
	return identity{
		Password: hex.EncodeToString(password[:]), UUID: newUUID(),
		Certificate: cert.Certificate[0], Key: key, Fingerprint: fingerprint,
	}, nil
}

// serve answers until ctx is done. The other node is the one that the fault wrong confuses it with.
func (c *controller) serve(ctx context.Context, other *node) error {
	c.redfish.Other = bmcMachine{other}
	if err := c.follow(); err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(c.Key)
	if err != nil {
		return fmt.Errorf("serve BMC of %s: %w", c.node.name, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp4", net.JoinHostPort(c.address, bmcPort))
	if err != nil {
		return fmt.Errorf("serve BMC of %s: %w", c.node.name, err)
	}
	c.server = bmc.Serve(c.redfish, tls.Certificate{Certificate: [][]byte{c.Certificate}, PrivateKey: key})
	c.node.room.background.Go(func() { _ = c.server.ServeTLS(l, "", "") })
	context.AfterFunc(ctx, func() { _ = c.server.Close() })
	return nil
}

// follow gives the BMC its address and its ipmi_sim, or takes both away when the BMC itself has no power: then nothing
// answers for it, not even the network below.
func (c *controller) follow() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	silent := c.redfish.Silent()
	if !silent {
		if err := c.setAddress(true); err != nil {
			return err
		}
		return c.ipmi.run(c.redfish.UUID(), c.redfish.Fault() == bmc.Hang)
	}
	return errors.Join(c.ipmi.kill(), c.setAddress(false))
}

// setAddress is idempotent.
func (c *controller) setAddress(there bool) error {
	link, err := netlink.LinkByName(string(Mgmt))
	if err != nil {
		return fmt.Errorf("find switch %s: %w", Mgmt, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(c.address).To4(), Mask: net.CIDRMask(32, 32)}}
	if !there {
		if err = netlink.AddrDel(link, addr); errors.Is(err, unix.EADDRNOTAVAIL) {
			err = nil
		}
	} else if err = netlink.AddrAdd(link, addr); errors.Is(err, unix.EEXIST) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("address of the BMC of %s: %w", c.node.name, err)
	}
	return nil
}

func (c *controller) status() BMCStatus {
	st := BMCStatus{Address: c.address, Fault: c.redfish.Fault(), UUID: c.UUID, Fingerprint: c.Fingerprint, Password: c.Password}
	if c.ipmi != nil {
		st.IPMI = c.ipmi.address
	}
	return st
}

// answers waits until a BMC that is to answer does.
func (c *controller) answers(ctx context.Context) error {
	if c.ipmi == nil || c.redfish.Silent() || c.redfish.Fault() == bmc.Hang {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, simTimeout)
	defer cancel()
	if err := bmc.PingRMCP(ctx, c.ipmi.address); err != nil {
		return fmt.Errorf("start IPMI of %s, see %s: %w", c.node.name, logPath(c.node.room.config.Dir), err)
	}
	return nil
}

// setBMC breaks or heals a node's BMC, and returns when it answers again if it is to.
func (n *node) setBMC(ctx context.Context, f BMCFault) error {
	f, err := bmc.ParseFault(string(f))
	if err != nil {
		return err
	}
	n.bmc.redfish.SetFault(f)
	n.room.log.Printf("%s: BMC: %s", n.name, f)
	if err := n.bmc.follow(); err != nil {
		return err
	}
	return n.bmc.answers(ctx)
}

// bmcMachine is a node as its BMC switches it.
type bmcMachine struct{ n *node }

// On is true until no process of the node is left.
func (m bmcMachine) On() bool { return m.n.powered.Load() }

// PowerOff returns when no process of the node is left.
func (m bmcMachine) PowerOff(ctx context.Context) error {
	_, err := m.n.power(ctx, PowerOff)
	return err
}

// PowerOn returns when the node's units are started.
func (m bmcMachine) PowerOn(ctx context.Context) error {
	_, err := m.n.power(ctx, PowerOn)
	return err
}

// UUID is the node's system UUID.
func (m bmcMachine) UUID() string { return m.n.bmc.UUID }

// BMC breaks a node's BMC, or heals it with the fault "none". It holds over power cycles of the node.
func (r *Room) BMC(ctx context.Context, node string, f BMCFault) error {
	_, err := r.call(ctx, request{Op: "bmc", Node: node, Fault: f})
	return err
}

// FenceConfig is ha/fence.cfg for a cluster of all the room's nodes, with the methods of these types,
// pveconf.FenceRedfish and pveconf.FenceIPMI; none means all that the room has. Each BMC has a password of its own; the
// lines name BMCPasswordFile with the node's name after it. model.ErrUnavailable: the room has no BMC of that type.
func (r *Room) FenceConfig(ctx context.Context, types ...string) (string, error) {
	st, err := r.Status(ctx)
	if err != nil {
		return "", err
	}
	return fenceConfig(st, types...)
}

func fenceConfig(st Status, types ...string) (string, error) {
	var methods []pveconf.FenceMethod
	for _, n := range st.Nodes {
		if n.BMC == nil {
			return "", model.Errorf(model.ErrUnavailable, "room %q has no BMCs: its sauh is another version", st.Name)
		}
		chosen := types
		if len(chosen) == 0 {
			chosen = n.BMC.types()
		}
		for _, typ := range chosen {
			m, err := n.BMC.method(n.Node, typ)
			if err != nil {
				return "", err
			}
			methods = append(methods, m)
		}
	}
	text, err := pveconf.PrintFence(methods)
	return whyGap + string(text), err
}

// whyGap stands above the methods.
const whyGap = "# verify-gap is short here because a BMC of the room says off when no process of its node is left, and not sooner.\n" +
	"# Only its fault `early` (1 s) lies for longer. Do not copy it for a BMC that nobody has measured.\n"

// types are those of the methods that the BMC is good for.
func (b *BMCStatus) types() []string {
	if b.IPMI == "" {
		return []string{pveconf.FenceRedfish}
	}
	return []string{pveconf.FenceRedfish, pveconf.FenceIPMI}
}

func (b *BMCStatus) method(node, typ string) (pveconf.FenceMethod, error) {
	m := pveconf.NewFenceMethod(typ, node+"-bmc")
	switch typ {
	case pveconf.FenceRedfish:
		m.Address, m.Fingerprint = net.JoinHostPort(b.Address, bmcPort), b.Fingerprint
	case pveconf.FenceIPMI:
		if b.IPMI == "" {
			return m, model.Errorf(model.ErrUnavailable,
				"the room was built without the program ipmi_sim: install it with `apt install openipmi` and build the room again")
		}
		m.ID, m.Address = node+"-ipmi", b.IPMI
	default:
		return m, model.Invalidf("type", "no BMC speaks %q: use redfish or ipmi", typ)
	}
	m.Nodes, m.User, m.UUID = []string{node}, BMCUser, b.UUID
	m.PasswordFile = BMCPasswordFile + "-" + node
	m.VerifyGap = fence.RehearsedGap // see whyGap: any gap would do, and with this one a single answer is enough for core/ha
	return m, nil
}

// systemUUID is the file through which a machine with DMI tells its UUID.
const systemUUID = "/sys/class/dmi/id/product_uuid"

// writeUUID is for the nodes' file of that name.
func writeUUID(n *node) error {
	return os.WriteFile(filepath.Join(n.runDir(), "product_uuid"), []byte(n.bmc.UUID+"\n"), 0o400)
}
