package pveconf

import (
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Format describes a property string such as "virtio=MAC,bridge=vmbr0".
type Format struct {
	// Default is the key of a value that stands without one, "" if there is none.
	Default string
	// Keys are the keys allowed, Default included.
	Keys []string
	// Aliases are other spellings of a key.
	Aliases []Alias
}

// Alias lets Name stand for Key. If NameKey is not empty, the spelling itself
// is information and is kept under it: "virtio=MAC" means model=virtio and macaddr=MAC.
type Alias struct {
	Name, Key, NameKey string
}

// Prop is one key and its value.
type Prop struct {
	Key, Value string
}

// Props is a property string taken apart, in the order in which it was written.
type Props []Prop

// ParseProps takes s apart by f. Its errors have Proxmox VE's texts and satisfy
// errors.Is(err, model.ErrInvalid); the parameter that they name is param.
func ParseProps(param string, f Format, s string) (Props, error) {
	var ps Props
	for part := range strings.SplitSeq(s, ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		key, value, hasKey := strings.Cut(part, "=")
		var err error
		switch {
		case !hasKey && f.Default == "":
			err = model.Invalidf(param, "value without key, but schema does not define a default key: %q", part)
		case !hasKey:
			ps, err = ps.add(param, f.Default, part)
		case key == "" || value == "":
			err = model.Invalidf(param, "missing key in comma-separated list property: %q", part)
		default:
			ps, err = ps.addKey(param, f, key, value)
		}
		if err != nil {
			return nil, err
		}
	}
	return ps, nil
}

func (ps Props) addKey(param string, f Format, key, value string) (Props, error) {
	for _, a := range f.Aliases {
		if a.Name != key {
			continue
		}
		if a.NameKey != "" {
			if _, dup := ps.Get(a.NameKey); dup {
				return nil, model.Invalidf(param, "key alias '%s' is already defined", a.NameKey)
			}
			ps = append(ps, Prop{a.NameKey, key})
		}
		return ps.add(param, a.Key, value)
	}
	if !slices.Contains(f.Keys, key) {
		return nil, model.Invalidf(param, "invalid key in comma-separated list property: %s (allowed: %s)", key, strings.Join(f.names(), ", "))
	}
	return ps.add(param, key, value)
}

// names are the keys allowed, and the spellings that say something themselves.
func (f Format) names() []string {
	names := slices.Clone(f.Keys)
	for _, a := range f.Aliases {
		if a.NameKey != "" {
			names = append(names, a.Name)
		}
	}
	return names
}

func (ps Props) add(param, key, value string) (Props, error) {
	if _, dup := ps.Get(key); dup {
		return nil, model.Invalidf(param, "duplicate key in comma-separated list property: %s", key)
	}
	return append(ps, Prop{key, value}), nil
}

// Get returns the value of key.
func (ps Props) Get(key string) (string, bool) {
	for _, p := range ps {
		if p.Key == key {
			return p.Value, true
		}
	}
	return "", false
}

// Set replaces or appends key and returns the result; ps itself stays as it is.
func (ps Props) Set(key, value string) Props {
	out := slices.Clone(ps)
	for i := range out {
		if out[i].Key == key {
			out[i].Value = value
			return out
		}
	}
	return append(out, Prop{key, value})
}

// Without returns ps without the keys named.
func (ps Props) Without(keys ...string) Props {
	return slices.DeleteFunc(slices.Clone(ps), func(p Prop) bool { return slices.Contains(keys, p.Key) })
}

// Print writes the property string: the default key's value first and without
// its key, a pair that f has an alias for as the alias, the rest in order.
func (ps Props) Print(f Format) string {
	var first string
	rest := ps
	if v, ok := ps.Get(f.Default); ok {
		first = v
		rest = ps.Without(f.Default)
	}
	for _, a := range f.Aliases {
		name, named := ps.Get(a.NameKey)
		value, ok := ps.Get(a.Key)
		if a.NameKey != "" && named && ok && name == a.Name {
			first = name + "=" + value
			rest = ps.Without(a.NameKey, a.Key)
			break
		}
	}
	var parts []string
	if first != "" {
		parts = append(parts, first)
	}
	for _, p := range rest {
		parts = append(parts, p.Key+"="+p.Value)
	}
	return strings.Join(parts, ",")
}
