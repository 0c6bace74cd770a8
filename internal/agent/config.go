package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/sys"
)

// Config is /etc/sauh/agent.json, written by an administrator or an installer.
type Config struct {
	// Node is the name under which this machine creates or joins a cluster; "" takes the host's name.
	Node string `json:"node"`
	// Mgmt and Cluster are this machine's addresses in its two networks.
	Mgmt    string `json:"mgmt"`
	Cluster string `json:"cluster"`
	// Bridge is the bridge that guests use when their configuration names none.
	Bridge string `json:"bridge"`
}

// Paths says where the agent keeps things. DefaultPaths is what everybody uses; tests have their own.
type Paths struct {
	Config     string // agent.json
	State      string // certificates, the store's data, tasks
	Run        string // sockets and pid files
	CgroupRoot string // mount point of cgroup v2
}

// DefaultPaths are the places on a node.
func DefaultPaths() Paths {
	return Paths{Config: "/etc/sauh/agent.json", State: "/var/lib/sauh", Run: "/run/sauh", CgroupRoot: "/sys/fs/cgroup"}
}

func (p Paths) apiSocket() string         { return filepath.Join(p.Run, "api.sock") }
func (p Paths) guardSocket() string       { return filepath.Join(p.Run, "guard.sock") }
func (p Paths) qemuRun() string           { return filepath.Join(p.Run, "qemu") }
func (p Paths) ending() string            { return filepath.Join(p.Run, "ending.json") }
func (p Paths) guestsCgroup() string      { return guard.GuestsDir(p.CgroupRoot) }
func (p Paths) cgroupOf(id string) string { return filepath.Join(p.guestsCgroup(), id) }
func (p Paths) membership() string        { return filepath.Join(p.State, "member.json") }
func (p Paths) former() string            { return filepath.Join(p.State, "former") }
func (p Paths) storeData() string         { return filepath.Join(p.State, "etcd") }
func (p Paths) tasks() string             { return filepath.Join(p.State, "tasks") }
func (p Paths) caCert() string            { return filepath.Join(p.State, "certs", "ca.pem") }
func (p Paths) nodeCert() string          { return filepath.Join(p.State, "certs", "node.pem") }
func (p Paths) nodeKey() string           { return filepath.Join(p.State, "certs", "node.key") }

// Membership is what a node must remember to find its cluster again; it is
// written last when the node creates or joins one, and removed first when it leaves.
type Membership struct {
	Node     model.Node          `json:"node"`
	Cluster  model.Cluster       `json:"cluster"`
	Initial  map[string][]string `json:"initial"` // peer URLs by node name, as at the start
	Existing bool                `json:"existing"`
}

func loadConfig(path string) (Config, error) {
	var c Config
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("no configuration at %s: write {\"node\": \"n1\", \"mgmt\": \"ADDRESS\", \"cluster\": \"ADDRESS\", \"bridge\": \"vmbr0\"} there", path)
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if c.Node == "" {
		if c.Node, err = os.Hostname(); err != nil {
			return c, fmt.Errorf("find the host's name: %w", err)
		}
	}
	if c.Bridge == "" {
		c.Bridge = "vmbr0"
	}
	if err := model.ValidateNodeName(c.Node); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	for name, addr := range map[string]string{"mgmt": c.Mgmt, "cluster": c.Cluster} {
		if _, err := netip.ParseAddr(addr); err != nil {
			return c, fmt.Errorf("%s: %s: %q is not an IP address", path, name, addr)
		}
	}
	return c, nil
}

// loadMembership returns nil when this node belongs to no cluster.
func loadMembership(path string) (*Membership, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read membership: %w", err)
	}
	m := &Membership{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("read membership %s: %w", path, err)
	}
	return m, nil
}

func saveJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return sys.WriteFile(path, append(data, '\n'))
}
