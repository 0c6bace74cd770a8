package pveconf

import "strings"

// CloudInit is what the guest's cloud-init is told.
type CloudInit struct {
	User     string
	Password string // as it stands in the file: in the clear, or a hash of crypt(3)
	// SSHKeys are lines of authorized_keys, decoded.
	SSHKeys []string
	Type    string // "configdrive2", "nocloud", "opennebula", or "" for the kind of system's default
	// NoUpgrade leaves packages as they are at the first boot.
	NoUpgrade     bool
	Addresses     []IPConfig
	NameServers   []string
	SearchDomains []string
	Custom        CICustom
}

// IPConfig is how a network card gets its addresses: ipconfig[n].
type IPConfig struct {
	Key string // "ipconfig0"
	// IP and IP6 are an address with its prefix, "dhcp", "manual", of IP6 also "auto", or "" for none; the gateways are "" without one.
	IP, Gateway, IP6, Gateway6 string
}

// CICustom names volumes whose files take the place of what is made from the other keys; "" for none.
type CICustom struct{ Meta, Network, User, Vendor string }

// ParseIPConfig reads the value of ipconfig[n].
func ParseIPConfig(key, value string) (IPConfig, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return IPConfig{}, err
	}
	return IPConfig{key, os.text("ip"), os.text("gw"), os.text("ip6"), os.text("gw6")}, nil
}

// ParseCICustom reads the value of cicustom.
func ParseCICustom(value string) (CICustom, error) {
	os, err := readChecked("cicustom", value)
	if err != nil {
		return CICustom{}, err
	}
	return CICustom{os.text("meta"), os.text("network"), os.text("user"), os.text("vendor")}, nil
}

// ParseSSHKeys reads the value of sshkeys, which is URL-encoded: one key a line.
func ParseSSHKeys(value string) ([]string, error) {
	if err := Validate("sshkeys", value); err != nil {
		return nil, err
	}
	var keys []string
	for l := range strings.Lines(decodeText(value)) {
		if l = strings.TrimSpace(l); l != "" {
			keys = append(keys, l)
		}
	}
	return keys, nil
}

// CloudInit collects what the guest's cloud-init is told.
func (g *Guest) CloudInit() CloudInit {
	c := CloudInit{
		User: g.value("ciuser", ""), Password: g.value("cipassword", ""), Type: g.value("citype", ""), NoUpgrade: !g.flag("ciupgrade", true),
		NameServers: splitList(g.value("nameserver", "")), SearchDomains: splitList(g.value("searchdomain", "")),
		Addresses: each(g, ParseIPConfig, "ipconfig"),
	}
	c.SSHKeys, _ = one(g, "sshkeys", ParseSSHKeys)
	c.Custom, _ = one(g, "cicustom", ParseCICustom)
	return c
}
