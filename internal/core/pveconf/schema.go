package pveconf

import (
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// kind is the type of a value.
type kind int

const (
	kindText kind = iota
	kindBoolean
	kindInteger
	kindNumber     // with a point
	kindStructured // a property string, see optionsOf
)

// option is what is said of one key of a guest's file, or of one option inside a structured key.
type option struct {
	name string
	kind kind
	// low and high bound a number; "" is no bound.
	low, high string
	unit      string // "MiB", for messages
	enum      string // the values allowed, separated by blanks; "" is any
	form      string // how a text is written, see formOf; "" is any
	maxLen    int    // in characters, 0 is no limit
	def       string // what holds without it
	aliasOf   string // another spelling of that option
	required  bool   // a structured value without it is refused
}

// keyOption returns what is said of a key: by the API's schema, or by Sauh where that says nothing or too little.
func keyOption(key string) (option, bool) {
	name := collapse(canonical(key))
	o, ok := schemaKey(name)
	switch name {
	case "boot", "cpu", "cicustom", "hostpci[n]", "ipconfig[n]", "rng0", "smbios1", "startup", "watchdog", "amd-sev", "intel-tdx":
		o.kind, o.form = kindStructured, ""
	case "cores", "sockets", "vcpus", "smp":
		o.high = "256" // more than QEMU's machine types have
	case "balloon":
		o.unit = "MiB"
	case "name":
		o.maxLen = 253 // of a DNS name
	case "snapstate": // only in files, between the beginning and the end of making a snapshot
		return option{name: name, enum: "prepare commit delete", form: ""}, true
	}
	return o, ok
}

// optionsOf returns the options of a structured key.
func optionsOf(key string) []option {
	name := collapse(canonical(key))
	if own := ownOptions(name); own != nil {
		return own
	}
	all := schemaOptions(name)
	if name == "memory" {
		all[0].high, all[0].unit = "16777216", "MiB" // 16 TiB
	}
	return all
}

// canonical is the key under which another spelling of Proxmox VE's is kept.
func canonical(key string) string {
	if key == "cdrom" {
		return "ide2"
	}
	return key
}

// defaultOption is the option that a part without a name belongs to, "" if there is none.
func defaultOption(key string) string {
	switch collapse(canonical(key)) {
	case "ide[n]", "sata[n]", "scsi[n]", "virtio[n]", "efidisk0", "tpmstate0", "unused[n]":
		return "file"
	case "net[n]":
		return "model"
	case "agent":
		return "enabled"
	case "boot":
		return "legacy"
	case "cpu":
		return "cputype"
	case "memory":
		return "current"
	case "hostpci[n]", "usb[n]":
		return "host"
	case "machine", "runningmachine", "vga", "amd-sev", "intel-tdx":
		return "type"
	case "rng0":
		return "source"
	case "startup":
		return "order"
	case "virtiofs[n]":
		return "dirid"
	case "watchdog":
		return "model"
	}
	return ""
}

// formatOf is the format of a structured key's property string.
func formatOf(key string) Format { return formatWith(key, optionsOf(key)) }

func formatWith(key string, all []option) Format {
	f := Format{Default: defaultOption(key), Keys: make([]string, 0, len(all))}
	for _, o := range all {
		switch o.aliasOf {
		case "":
			f.Keys = append(f.Keys, o.name)
		case "macaddr": // the card's model: its name says something
			f.Aliases = append(f.Aliases, Alias{Name: o.name, Key: o.aliasOf, NameKey: "model"})
		default:
			f.Aliases = append(f.Aliases, Alias{Name: o.name, Key: o.aliasOf})
		}
	}
	return f
}

// options are a structured value taken apart, each checked, with the defaults of those that are not there.
type options struct {
	Props
	all []option
}

// readOptions takes the value of a structured key apart and checks each option.
func readOptions(key, value string) (options, error) {
	all := optionsOf(key)
	f := formatWith(key, all)
	ps, err := ParseProps(key, f, value)
	if err != nil {
		return options{}, err
	}
	for i := range all {
		o := &all[i]
		v, set := ps.Get(o.name)
		if o.required && !set {
			return options{}, model.Invalidf(key, "%s is missing: %s", o.name, o.allowed())
		}
		if !set || o.aliasOf != "" {
			continue
		}
		name := o.name
		if name == f.Default {
			name = ""
		}
		if err := o.check(key, name, v); err != nil {
			return options{}, err
		}
	}
	return options{ps, all}, nil
}

// text returns an option's value, its default where it is not there.
func (os options) text(name string) string {
	if v, ok := os.Get(name); ok {
		return v
	}
	i := slices.IndexFunc(os.all, func(o option) bool { return o.name == name })
	if i < 0 {
		return ""
	}
	return os.all[i].def
}

func (os options) flag(name string) bool {
	b, err := parseBool("", os.text(name))
	return err == nil && b
}

// off is true where the value says no; saying nothing is not enough.
func (os options) off(name string) bool {
	b, err := parseBool("", os.text(name))
	return err == nil && !b
}

func (os options) integer(name string) int64 {
	n, _ := parseWhole(os.text(name))
	return n
}

func (os options) number(name string) float64 {
	f, _ := parseDecimal(os.text(name))
	return f
}

// list splits an option at ';', nil if it is not there.
func (os options) list(name string) []string {
	if v := os.text(name); v != "" {
		return strings.Split(v, ";")
	}
	return nil
}
