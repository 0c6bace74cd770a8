package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Limits and defaults of a room.
const (
	DefaultName  = "room"
	DefaultNodes = 3
	// MaxNodes leaves the addresses above .200 of both networks to guests and the room.
	MaxNodes = 32
	// StateRoot holds the directory of each room that was given none.
	StateRoot = "/var/lib/sauh-lab"
	// RoomAddress is the room's own address in the management network, for probes.
	RoomAddress = "10.10.1.254"
	// RoomName stands for the room itself where a node could be named.
	RoomName = "room"
)

// Config says what room to build. The zero value of each field means its default.
type Config struct {
	// Name tells rooms on one box apart: lower-case letters, digits and '-', at most 20 characters.
	Name string `json:"name"`
	// Dir is where the room keeps its data, StateRoot/Name by default.
	Dir string `json:"dir"`
	// Nodes is how many nodes the room has, named n1, n2, ….
	Nodes int `json:"nodes"`
	// Binary is the sauh that nodes run; it is copied into Dir. Default: the running program.
	Binary string `json:"binary"`
	// Units are what each node runs; nil means DefaultUnits.
	Units []Unit `json:"units"`
}

// Unit is a service that a node's init runs, as systemd would.
type Unit struct {
	Name string `json:"name"`
	// Argv is the command; the first word is looked up in the node's PATH.
	Argv []string `json:"argv"`
	// Restart starts the unit again 1 s after its main process ended, whatever its status.
	Restart bool `json:"restart"`
	// KeepRest is systemd's KillMode=process: what the unit started lives on after its
	// main process. Otherwise it is killed, as by KillMode=control-group.
	KeepRest bool `json:"keep_rest,omitempty"`
}

// DefaultUnits are those of an installed node. The guard is never restarted: its
// watchdog resets the machine instead. What the guard leaves behind holds the
// watchdog open; killing it would feed the watchdog once more.
func DefaultUnits() []Unit {
	return []Unit{
		{Name: "sauh-guard", Argv: []string{"sauh", "guard"}, KeepRest: true},
		{Name: "sauh-agent", Argv: []string{"sauh", "agent"}, Restart: true},
	}
}

// ParseUnit reads "name=command line"; words are separated by blanks. A name
// that ends in '!' is not restarted.
func ParseUnit(s string) (Unit, error) {
	name, line, ok := strings.Cut(s, "=")
	name, once := strings.CutSuffix(name, "!")
	argv := strings.Fields(line)
	if !ok || !unitName.MatchString(name) || len(argv) == 0 {
		return Unit{}, model.Invalidf("unit", "%q is not a unit: write name=command", s)
	}
	return Unit{Name: name, Argv: argv, Restart: !once}, nil
}

// Network names one of the two switches of a room.
type Network string

// The networks: management and guests; cluster and storage; both.
const (
	Mgmt        Network = "mgmt"
	Cluster     Network = "cluster"
	AllNetworks Network = "all"
)

// ParseNetwork reads the name of a network.
func ParseNetwork(s string) (Network, error) {
	if n := Network(s); n == Mgmt || n == Cluster || n == AllNetworks {
		return n, nil
	}
	return "", model.Invalidf("link", "%q is not a link: use mgmt, cluster or all", s)
}

func (n Network) each() []Network {
	if n == AllNetworks || n == "" {
		return []Network{Mgmt, Cluster}
	}
	return []Network{n}
}

// NodeName is the name of the i-th node, counted from 1.
func NodeName(i int) string { return fmt.Sprintf("n%d", i) }

// MgmtAddress and ClusterAddress are the i-th node's addresses, counted from 1; both networks are /24.
func MgmtAddress(i int) string { return fmt.Sprintf("10.10.1.%d", i) }

// ClusterAddress is the i-th node's address in the cluster network.
func ClusterAddress(i int) string { return fmt.Sprintf("10.10.2.%d", i) }

var (
	roomName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)
	unitName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,40}$`)
)

// validateName refuses names that would not do as a directory and a cgroup.
func validateName(name string) error {
	if !roomName.MatchString(name) {
		return model.Invalidf("name", "%q cannot name a room: use lower-case letters, digits and '-', at most 20 characters", name)
	}
	return nil
}

// complete fills in the defaults and checks what can be checked without the machine.
func (c Config) complete() (Config, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if err := validateName(c.Name); err != nil {
		return c, err
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(StateRoot, c.Name)
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return c, err
	}
	// The address of a unix socket has room for 107 bytes.
	if len(controlPath(c.Dir)) > 107 {
		return c, model.Invalidf("dir", "%s is too long a path for a socket: use a shorter one", c.Dir)
	}
	if c.Nodes == 0 {
		c.Nodes = DefaultNodes
	}
	if c.Nodes < 1 || c.Nodes > MaxNodes {
		return c, model.Invalidf("nodes", "%d is out of range: a room has 1 to %d nodes", c.Nodes, MaxNodes)
	}
	if c.Binary == "" {
		if c.Binary, err = os.Executable(); err != nil {
			return c, fmt.Errorf("find the running program: %w", err)
		}
	}
	if c.Units == nil {
		c.Units = DefaultUnits()
	}
	return c, validateUnits(c.Units)
}

func validateUnits(units []Unit) error {
	var names []string
	for _, u := range units {
		if !unitName.MatchString(u.Name) || len(u.Argv) == 0 {
			return model.Invalidf("unit", "%q needs a name of lower-case letters, digits and '-' and a command", u.Name)
		}
		if slices.Contains(names, u.Name) {
			return model.Invalidf("unit", "%q is named twice", u.Name)
		}
		names = append(names, u.Name)
	}
	return nil
}

// Where things are in a room's directory.

func controlPath(dir string) string  { return filepath.Join(dir, "control.sock") }
func configPath(dir string) string   { return filepath.Join(dir, "room.json") }
func logPath(dir string) string      { return filepath.Join(dir, "room.log") }
func binaryPath(dir string) string   { return filepath.Join(dir, "sauh") }
func nasPath(dir string) string      { return filepath.Join(dir, "nas") }
func nodesPath(dir string) string    { return filepath.Join(dir, "nodes") }
func runPath(dir string) string      { return filepath.Join(dir, "run") }
func cgroupName(name string) string  { return "sauh-lab-" + name }
func pointerPath(name string) string { return filepath.Join("/run/sauh-lab", name+".json") }
