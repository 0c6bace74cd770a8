package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// paramKind is the type that a parameter must have.
type paramKind int

const (
	kindText paramKind = iota
	kindInt
	kindNumber
	kindBool
)

// param describes one parameter. The texts of refusals are those of Proxmox VE.
type param struct {
	name     string
	kind     paramKind
	required bool
	enum     []string
	min, max int64 // of integers
}

// spec is what a route accepts; everything else is refused.
type spec struct {
	params    []param
	guestKeys bool
}

func text(name string) param { return param{name: name} }
func flag(name string) param { return param{name: name, kind: kindBool} }
func oneOf(name string, enum ...string) param {
	return param{name: name, enum: enum}
}

func integer(name string, min, max int64) param {
	return param{name: name, kind: kindInt, min: min, max: max}
}
func count(name string) param { return integer(name, 0, math.MaxInt64) }
func vmidParam() param {
	return integer("vmid", int64(model.MinVMID), int64(model.MaxVMID))
}

func required(p param) param {
	p.required = true
	return p
}

// args are checked parameters: integers parse, booleans are "0" or "1".
type args map[string]string

func (a args) has(name string) bool { _, ok := a[name]; return ok }
func (a args) bool(name string) bool {
	return a[name] == "1"
}

func (a args) int(name string, def int64) int64 {
	n, err := strconv.ParseInt(a[name], 10, 64)
	if err != nil {
		return def
	}
	return n
}
func (a args) vmid() model.VMID { return model.VMID(a.int("vmid", 0)) }

// readArgs collects the parameters of the path, the query and the body and checks
// them. A parameter that stands in two of them must have one value.
func readArgs(r *http.Request, vars map[string]string, sp spec) (args, error) {
	a := args{}
	for k, v := range vars {
		a[k] = v
	}
	query, err := parseForm(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	delete(query, "_dc") // against caches of old browsers; means nothing
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	for _, more := range []args{query, body} {
		for k, v := range more {
			if old, twice := a[k]; twice && old != v {
				return nil, invalidParam(k, "duplicate parameter (already defined in URI) with conflicting values!")
			}
			a[k] = v
		}
	}
	if errs := sp.check(a); len(errs) > 0 {
		return nil, invalid(errs)
	}
	return a, nil
}

func readBody(r *http.Request) (args, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodDelete {
		if r.ContentLength != 0 {
			return nil, errorf(http.StatusNotImplemented, "Unexpected content for method '%s'", r.Method)
		}
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "read the request's body: %v", err)
	}
	if len(b) > maxBody {
		return nil, errorf(http.StatusNotImplemented, "for data too large: the body of a request has at most %d KiB", maxBody>>10)
	}
	header := r.Header.Get("Content-Type")
	ctype, _, err := mime.ParseMediaType(header)
	switch {
	case header == "" || err == nil && ctype == "application/x-www-form-urlencoded":
		return parseForm(string(b))
	case err == nil && ctype == "application/json":
		return parseJSON(b)
	case len(b) == 0:
		return nil, nil
	}
	return nil, errorf(http.StatusVariantAlsoNegotiates, "upload 'Content-Type '%s' not implemented", header)
}

// parseForm reads key=value pairs separated by & or ;. A repeated key becomes a list.
func parseForm(s string) (args, error) {
	values, err := url.ParseQuery(strings.ReplaceAll(s, ";", "&"))
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "the parameters are not form-encoded: %v", err)
	}
	a := args{}
	for k, v := range values {
		a[k] = strings.Join(v, ",")
	}
	return a, nil
}

func parseJSON(b []byte) (args, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, errorf(http.StatusBadRequest, "the body is not a JSON object: %v", err)
	}
	a := args{}
	for k, v := range m {
		s, set, ok := scalar(v)
		if !ok {
			return nil, invalidParam(k, "type check ('string') failed - got an object")
		}
		if set {
			a[k] = s
		}
	}
	return a, nil
}

// scalar prints a JSON value the way a form would carry it; null counts as not given.
func scalar(v any) (s string, set, ok bool) {
	switch v := v.(type) {
	case nil:
		return "", false, true
	case string:
		return v, true, true
	case json.Number:
		return v.String(), true, true
	case bool:
		if v {
			return "1", true, true
		}
		return "0", true, true
	case []any:
		parts := make([]string, 0, len(v))
		for _, e := range v {
			p, _, ok := scalar(e)
			if !ok {
				return "", false, false
			}
			parts = append(parts, p)
		}
		return strings.Join(parts, ","), true, true
	}
	return "", false, false
}

// check returns what is wrong, by parameter.
func (sp spec) check(a args) map[string]string {
	errs := map[string]string{}
	for _, p := range sp.params {
		if p.required && !a.has(p.name) {
			errs[p.name] = "property is missing and it is not optional"
		}
	}
	for name, value := range a {
		p, known := sp.find(name)
		if !known {
			errs[name] = "property is not defined in schema and the schema does not allow additional properties"
			continue
		}
		if msg := p.check(value); msg != "" {
			errs[name] = msg
		}
	}
	return errs
}

func (sp spec) find(name string) (param, bool) {
	for _, p := range sp.params {
		if p.name == name {
			return p, true
		}
	}
	if sp.guestKeys {
		if kind, ok := guestKey(name); ok {
			return param{name: name, kind: kind, min: math.MinInt64, max: math.MaxInt64}, true
		}
	}
	return param{}, false
}

func (p param) check(value string) string {
	switch p.kind {
	case kindInt:
		n, err := strconv.ParseInt(value, 10, 64)
		switch {
		case err != nil:
			return fmt.Sprintf("type check ('integer') failed - got '%s'", value)
		case n < p.min:
			return fmt.Sprintf("value must have a minimum value of %d", p.min)
		case n > p.max:
			return fmt.Sprintf("value must have a maximum value of %d", p.max)
		}
	case kindNumber:
		if n, err := strconv.ParseFloat(value, 64); err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return fmt.Sprintf("type check ('number') failed - got '%s'", value)
		}
	case kindBool:
		if value != "0" && value != "1" {
			return fmt.Sprintf("type check ('boolean') failed - got '%s': write 1 or 0", value)
		}
	case kindText:
		return p.checkText(value)
	}
	return ""
}

func (p param) checkText(value string) string {
	if p.name == "node" && value != localhost && model.ValidateNodeName(value) != nil {
		return "invalid format - value does not look like a valid node name"
	}
	if len(p.enum) == 0 {
		return ""
	}
	for _, e := range p.enum {
		if e == value {
			return ""
		}
	}
	return fmt.Sprintf("value '%s' does not have a value in the enumeration '%s'", value, strings.Join(p.enum, ", "))
}

// guestKey says whether name is a key of a guest's configuration in Proxmox VE, and
// its type. Whether Sauh can do anything with it, the backend decides.
func guestKey(name string) (paramKind, bool) {
	base, index := splitIndex(name)
	if index >= 0 {
		limit, ok := indexedGuestKeys()[base]
		if ok && index < limit {
			return kindText, true
		}
	}
	kind, ok := plainGuestKeys()[name]
	return kind, ok
}

// splitIndex cuts "net0" into "net" and 0; index is -1 without a number, or with a leading zero.
func splitIndex(name string) (base string, index int) {
	base = strings.TrimRight(name, "0123456789")
	digits := name[len(base):]
	n, err := strconv.Atoi(digits)
	if err != nil || strconv.Itoa(n) != digits {
		return name, -1
	}
	return base, n
}

// indexedGuestKeys gives the number of each kind of device, from the API's schema.
func indexedGuestKeys() map[string]int {
	return map[string]int{
		"net": 32, "scsi": 31, "virtio": 16, "sata": 6, "ide": 4, "serial": 4, "parallel": 3, "usb": 14,
		"hostpci": 16, "ipconfig": 32, "unused": 256, "numa": 8, "virtiofs": 10, "efidisk": 1,
		"tpmstate": 1, "audio": 1, "rng": 1, "smbios": 2,
	}
}

// plainGuestKeys gives the type of each key without a number, from the API's schema.
func plainGuestKeys() map[string]paramKind {
	m := map[string]paramKind{"cpulimit": kindNumber, "migrate_downtime": kindNumber}
	for kind, names := range map[paramKind]string{
		kindInt: "balloon cores cpuunits migrate_speed shares smp sockets vcpus",
		kindBool: "acpi allow-ksm autostart ciupgrade freeze keephugepages kvm localtime numa onboot protection " +
			"reboot tablet tdf template",
		kindText: "affinity agent amd-sev arch args bios boot bootdisk cdrom cicustom cipassword citype ciuser cpu " +
			"description hookscript hotplug hugepages intel-tdx ivshmem keyboard lock machine memory meta name nameserver " +
			"ostype scsihw searchdomain spice_enhancements sshkeys startdate startup tags vga vmgenid vmstatestorage watchdog",
	} {
		for _, n := range strings.Fields(names) {
			m[n] = kind
		}
	}
	return m
}

// parseSize reads the size of a volume: KiB, or with the suffix M or G.
func parseSize(s string) (int64, error) {
	m := regexp.MustCompile(`^([0-9]{1,12})([MG]?)$`).FindStringSubmatch(s)
	if m == nil {
		return 0, invalidParam("size", "value does not match the regex pattern")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, invalidParam("size", "value does not match the regex pattern")
	}
	shift := map[string]uint{"": 10, "M": 20, "G": 30}[m[2]]
	if n > math.MaxInt64>>shift {
		return 0, invalidParam("size", "'%s' is more than any storage holds", s)
	}
	return n << shift, nil
}
