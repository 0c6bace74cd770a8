package pveconf

import (
	"encoding/hex"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types of the sections of ha/fence.cfg.
const (
	FenceIPMI    = "ipmi"
	FenceRedfish = "redfish"
	FenceCeph    = "ceph" // blocklist
)

// FenceMethod is one section of ha/fence.cfg: a way to make sure that a node's guests are dead. Lease and
// watchdog need no section.
type FenceMethod struct {
	Type string
	ID   string
	// Nodes are those that the method is for: exactly one for a BMC; none means all for ceph.
	Nodes []string
	// Order: methods with the same number race, those with a higher one come when all of the lower ones failed.
	Order int
	// Delay is waited before the node is shot, so that of two nodes that shoot each other one is first.
	Delay time.Duration
	// AskTimeout and Timeout bound asking and shooting; the latter includes that off was verified.
	AskTimeout, Timeout time.Duration
	Disable             bool
	Comment             string

	// Of a BMC.

	Address      string // host:port
	User         string
	PasswordFile string // path below priv/, "priv/fence/n2"
	// UUID is the system UUID that the BMC names; "" means the node's own, "any" that it cannot be told.
	UUID string
	// VerifyGap is the time between the two readings of off; 0 leaves it to what the rehearsal found.
	VerifyGap time.Duration
	Cipher    int // of IPMI: 17, 3, or 0 for both in this order

	// Of Redfish.

	Fingerprint string // SHA-256 of the BMC's certificate, 64 hexadecimal digits
	System      string // path of the ComputerSystem; "" if the BMC has only one
	Session     bool   // log in, rather than sending the password with each request

	// Of Ceph.

	Storages []string // those of storage.cfg on this Ceph
	Conf     string   // configuration file
	CephUser string   // without "client."

	// Unsupported says why Sauh cannot use it, "" if it can. Such a section is kept as it is.
	Unsupported string
	// Section is where it came from; it keeps order, comments and unknown keys.
	Section Section
}

// Name is how people and messages call the method: "redfish: n2-bmc".
func (m FenceMethod) Name() string { return m.Type + ": " + m.ID }

// For says whether the method is there for node.
func (m FenceMethod) For(node string) bool {
	return m.Unsupported == "" && !m.Disable && (len(m.Nodes) == 0 || slices.Contains(m.Nodes, node))
}

// Defaults of ha/fence.cfg. A BMC answers within some 100 ms and takes one to five seconds to switch; asking includes that
// off is verified.
const (
	fenceAskTimeout = 5 * time.Second
	fenceTimeout    = 10 * time.Second
)

// ParseFence reads ha/fence.cfg. Sections of an unknown type are returned with Unsupported set; everything else
// that is wrong, unknown keys too, is an *model.InvalidError with its line.
func ParseFence(text []byte) ([]FenceMethod, error) {
	f, err := ParseSections(text)
	if err != nil {
		return nil, err
	}
	var out []FenceMethod
	for _, s := range f.Sections {
		m, err := FenceFromSection(s)
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			if o.ID == m.ID {
				return nil, invalidLine(s.Line, s.Type, "%s stands already in line %d: give one of the two another name", s.ID, o.Section.Line)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// fenceKeys are the keys of a type, nil of a type that is not known.
func fenceKeys(typ string) []string {
	common := []string{"order", "delay", "timeout", "ask-timeout", "disable", "comment"}
	bmc := append([]string{"node", "address", "user", "password-file", "uuid", "verify-gap"}, common...)
	switch typ {
	case FenceIPMI:
		return append(bmc, "cipher")
	case FenceRedfish:
		return append(bmc, "fingerprint", "system", "auth")
	case FenceCeph:
		return append([]string{"nodes", "storages", "conf", "user"}, common...)
	}
	return nil
}

// FenceFromSection reads one section of ha/fence.cfg; errors as ParseFence.
func FenceFromSection(s Section) (FenceMethod, error) {
	m := FenceMethod{Type: s.Type, ID: s.ID, Section: s}
	keys := fenceKeys(s.Type)
	if keys == nil {
		m.Unsupported = "fencing by " + strconv.Quote(s.Type) + " is not supported by this version: only ipmi, redfish and ceph are"
		return m, nil
	}
	for _, o := range s.Options {
		// A key that is misspelt would silently be a method without it.
		if !slices.Contains(keys, o.Key) {
			return FenceMethod{}, invalidLine(o.Line, o.Key, "%s has no such key: use %s", s.Type, strings.Join(keys, ", "))
		}
	}
	if err := m.readCommon(s); err != nil {
		return FenceMethod{}, err
	}
	read := m.readBMC
	if s.Type == FenceCeph {
		read = m.readCeph
	}
	if err := read(s); err != nil {
		return FenceMethod{}, err
	}
	return m, nil
}

func (m *FenceMethod) readCommon(s Section) error {
	var err error
	if v, ok := s.Get("order"); ok {
		if m.Order, err = strconv.Atoi(v); err != nil || m.Order < 0 || m.Order > 99 {
			return s.invalid("order", "%q is not an order: use 0 to 99; methods with the same number race", v)
		}
	}
	if m.Delay, err = s.seconds("delay", 0, 0, time.Minute); err != nil {
		return err
	}
	if m.Timeout, err = s.seconds("timeout", fenceTimeout, 100*time.Millisecond, 5*time.Minute); err != nil {
		return err
	}
	if m.AskTimeout, err = s.seconds("ask-timeout", fenceAskTimeout, 100*time.Millisecond, time.Minute); err != nil {
		return err
	}
	if m.Disable, err = s.boolean("disable", false); err != nil {
		return err
	}
	m.Comment, _ = s.Get("comment")
	return nil
}

func (m *FenceMethod) readBMC(s Section) error {
	node, _ := s.Get("node")
	if !nodeWord.MatchString(node) {
		return s.invalid("node", "%q is not a node name: a BMC belongs to exactly one node, write \"node n2\"", node)
	}
	m.Nodes = []string{node}
	if err := m.readAddress(s); err != nil {
		return err
	}
	if m.User, _ = s.Get("user"); m.User == "" {
		return s.invalid("user", "%s needs a user", m.ID)
	}
	m.PasswordFile, _ = s.Get("password-file")
	if !strings.HasPrefix(m.PasswordFile, "priv/") || path.Clean(m.PasswordFile) != m.PasswordFile {
		return s.invalid("password-file", "%q is not allowed: passwords stand in files of their own below priv/, such as priv/fence/%s", m.PasswordFile, m.ID)
	}
	if v, ok := s.Get("uuid"); ok {
		if m.UUID = strings.ToLower(v); m.UUID != "any" && !isUUID(m.UUID) {
			return s.invalid("uuid", "%q is no system UUID: copy the one that the BMC names, or write any", v)
		}
	}
	var err error
	if m.VerifyGap, err = s.seconds("verify-gap", 0, 50*time.Millisecond, time.Minute); err != nil {
		return err
	}
	if m.VerifyGap >= m.Timeout {
		return s.invalid("verify-gap", "it must be shorter than the timeout of %v", m.Timeout)
	}
	if s.Type == FenceIPMI {
		return m.readIPMI(s)
	}
	return m.readRedfish(s)
}

// readAddress takes a host with or without a port.
func (m *FenceMethod) readAddress(s Section) error {
	port := map[string]string{FenceIPMI: "623", FenceRedfish: "443"}[s.Type]
	v, _ := s.Get("address")
	host := v
	if inside, rest, ok := strings.Cut(strings.TrimPrefix(v, "["), "]"); ok && strings.HasPrefix(v, "[") {
		host = inside
		if rest != "" {
			port = strings.TrimPrefix(rest, ":")
		}
	} else if h, p, ok := strings.Cut(v, ":"); ok && !strings.Contains(p, ":") {
		host, port = h, p
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 || host == "" || strings.ContainsAny(host, "/@ []") {
		return s.invalid("address", "%q is not an address: write a host or an IP address, with :port if it is not the usual one", v)
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	m.Address = host + ":" + strconv.Itoa(n)
	return nil
}

func (m *FenceMethod) readIPMI(s Section) error {
	switch v, ok := s.Get("cipher"); {
	case !ok:
	case v == "3":
		m.Cipher = 3
	case v == "17":
		m.Cipher = 17
	default:
		return s.invalid("cipher", "%q is not allowed: use 17 or 3, the suites that authenticate and encrypt", v)
	}
	return nil
}

func (m *FenceMethod) readRedfish(s Section) error {
	v, _ := s.Get("fingerprint")
	digits := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(v), "sha256:"), ":", ""))
	if b, err := hex.DecodeString(digits); err != nil || len(b) != 32 {
		return s.invalid("fingerprint", "%q is not the SHA-256 fingerprint of a certificate: `openssl x509 -noout -fingerprint -sha256` prints it", v)
	}
	m.Fingerprint = digits
	m.System, _ = s.Get("system")
	if m.System != "" && (!strings.HasPrefix(m.System, "/redfish/") || path.Clean(m.System) != m.System) {
		return s.invalid("system", "%q is not the path of a system: it looks like /redfish/v1/Systems/1", m.System)
	}
	switch v, ok := s.Get("auth"); {
	case !ok, v == "basic":
	case v == "session":
		m.Session = true
	default:
		return s.invalid("auth", "%q is not allowed: use basic or session", v)
	}
	return nil
}

func (m *FenceMethod) readCeph(s Section) error {
	m.Nodes = s.list("nodes")
	for _, n := range m.Nodes {
		if !nodeWord.MatchString(n) {
			return s.invalid("nodes", "%q is not a node name: separate names by commas", n)
		}
	}
	m.Storages = s.list("storages")
	if len(m.Storages) == 0 {
		return s.invalid("storages", "%s needs the storages that are on this Ceph: write their names, separated by commas", m.ID)
	}
	for _, id := range m.Storages {
		if !storageID.MatchString(id) {
			return s.invalid("storages", "%q is no storage name", id)
		}
	}
	m.Conf, _ = s.Get("conf")
	if m.Conf == "" {
		m.Conf = "/etc/ceph/ceph.conf"
	}
	if !path.IsAbs(m.Conf) {
		return s.invalid("conf", "%q is not an absolute path", m.Conf)
	}
	m.CephUser = "admin"
	if v, ok := s.Get("user"); ok {
		m.CephUser = strings.TrimPrefix(v, "client.")
	}
	if m.CephUser == "" || strings.HasPrefix(m.CephUser, "-") || strings.ContainsAny(m.CephUser, " \t") {
		return s.invalid("user", "%q is no Ceph user", m.CephUser)
	}
	return nil
}

// seconds reads a number of seconds, "2" or "0.4".
func (s Section) seconds(key string, absent, least, most time.Duration) (time.Duration, error) {
	v, ok := s.Get(key)
	if !ok {
		return absent, nil
	}
	f, err := strconv.ParseFloat(v, 64)
	d := time.Duration(f * float64(time.Second))
	if err != nil || !(f >= 0 && f <= 1e6) || d < least || d > most {
		return 0, s.invalid(key, "%q is not allowed: write seconds, %v to %v", v, least.Seconds(), most.Seconds())
	}
	return d, nil
}

func isUUID(s string) bool {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return err == nil && len(b) == 16 && len(s) == 36
}

// FenceNodes refuses methods of nodes that are not there; known are the members' names.
func FenceNodes(methods []FenceMethod, known []string) error {
	for _, m := range methods {
		for _, n := range m.Nodes {
			if !slices.Contains(known, n) {
				key := "node"
				if m.Type == FenceCeph {
					key = "nodes"
				}
				return m.Section.invalid(key, "node '%s' does not exist: the nodes are %s", n, strings.Join(known, ", "))
			}
		}
	}
	return nil
}

// FenceStorages refuses methods by storages that are not there; known are the names of storage.cfg.
func FenceStorages(methods []FenceMethod, known []string) error {
	for _, m := range methods {
		for _, s := range m.Storages {
			if !slices.Contains(known, s) {
				return m.Section.invalid("storages", "storage.cfg has no storage %q: it has %s", s, strings.Join(known, ", "))
			}
		}
	}
	return nil
}

// PrintFence writes ha/fence.cfg: each method's section as it was read, with the keys that stand for its fields
// set anew where they differ. Comments after the last section are dropped.
func PrintFence(methods []FenceMethod) ([]byte, error) {
	var f SectionFile
	for _, m := range methods {
		s, err := m.section()
		if err != nil {
			return nil, err
		}
		f.Sections = append(f.Sections, s)
	}
	return f.Print()
}

// section writes the fields that differ from those in m.Section back into it, and validates the result.
func (m FenceMethod) section() (Section, error) {
	s := m.Section
	s.Type, s.ID = m.Type, m.ID
	keys := fenceKeys(m.Type)
	if keys == nil {
		return s, nil
	}
	was := FenceMethod{}
	if old, err := FenceFromSection(s); err == nil {
		was = old
	} else if len(s.Options) > 0 {
		return s, err
	}
	now, before := m.values(), was.values()
	for _, key := range keys {
		switch _, has := s.Get(key); {
		case now[key] == before[key]:
		case now[key] == "" && has:
			s = s.Without(key)
		case now[key] != "":
			s = s.With(key, now[key])
		}
	}
	_, err := FenceFromSection(s)
	return s, err
}

// values are the fields as they are written; "" for what stands for the default.
func (m FenceMethod) values() map[string]string {
	seconds := func(d, absent time.Duration) string {
		if d == absent {
			return ""
		}
		return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
	}
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	v := map[string]string{
		"order": number(m.Order), "delay": seconds(m.Delay, 0), "comment": m.Comment,
		"timeout": seconds(m.Timeout, fenceTimeout), "ask-timeout": seconds(m.AskTimeout, fenceAskTimeout),
		"verify-gap": seconds(m.VerifyGap, 0), "address": m.Address, "user": m.User,
		"password-file": m.PasswordFile, "uuid": m.UUID, "cipher": number(m.Cipher), "fingerprint": m.Fingerprint,
		"system": m.System, "node": strings.Join(m.Nodes, ","), "nodes": strings.Join(m.Nodes, ","),
		"storages": strings.Join(m.Storages, ","), "conf": m.Conf,
	}
	if m.Disable {
		v["disable"] = "1"
	}
	if m.Session {
		v["auth"] = "session"
	}
	if m.Type == FenceCeph {
		v["user"] = m.CephUser
	}
	return v
}

// NewFenceMethod is a method of the type with the defaults of everything that has one.
func NewFenceMethod(typ, id string) FenceMethod {
	m := FenceMethod{Type: typ, ID: id, Timeout: fenceTimeout, AskTimeout: fenceAskTimeout}
	if typ == FenceCeph {
		m.Conf, m.CephUser = "/etc/ceph/ceph.conf", "admin"
	}
	return m
}

// Text is the method's section without its comments: what a rehearsal was of. It fails for one that cannot be printed.
func (m FenceMethod) Text() ([]byte, error) {
	s, err := m.section()
	if err != nil {
		return nil, err
	}
	s = s.Without("comment")
	s.Comments = nil
	for i := range s.Options {
		s.Options[i].Comments = nil
	}
	return SectionFile{Sections: []Section{s}}.Print()
}
