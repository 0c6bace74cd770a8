package pveconf

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// ShutdownPolicy is what happens to HA resources when their node shuts down in good order.
type ShutdownPolicy string

// The policies of datacenter.cfg's ha: shutdown_policy=….
const (
	ShutdownConditional ShutdownPolicy = "conditional" // a reboot freezes, a shutdown fails over
	ShutdownFreeze      ShutdownPolicy = "freeze"      // they wait for their node
	ShutdownFailover    ShutdownPolicy = "failover"    // they are recovered elsewhere once the node is gone
	ShutdownMigrate     ShutdownPolicy = "migrate"     // they are moved before the node goes, and come back
)

// CRS is datacenter.cfg's crs: how the scheduler works.
type CRS struct {
	// Mode is basic, static or dynamic.
	Mode             string
	RebalanceOnStart bool
	AutoRebalance    bool
	// Threshold and Margin are fractions, 0 to 1; the file has percent.
	Threshold, Margin float64
	// HoldRounds is the hold duration in rounds of Proxmox VE's manager; see [CRS.Hold].
	HoldRounds float64
	// Method is bruteforce or topsis.
	Method string
}

// HoldRound is the time that one round of the hold duration stands for: Proxmox VE's manager looks every 10 s by its
// manual and every 20 s in its simulator. The longer one moves nothing needlessly.
const HoldRound = 20 * time.Second

// Hold is how long an imbalance must last.
func (c CRS) Hold() time.Duration { return time.Duration(c.HoldRounds * float64(HoldRound)) }

// DatacenterHA is what datacenter.cfg says about HA.
type DatacenterHA struct {
	ShutdownPolicy ShutdownPolicy
	CRS            CRS
	// Tolerate is failures-to-tolerate, which Proxmox VE does not have: how many nodes may fail such that all guests come back;
	// 0 asks for nothing. A start that would break it is refused, or, with TolerateWarn, allowed with a word.
	Tolerate     int
	TolerateWarn bool
}

// DefaultDatacenterHA is what an empty datacenter.cfg means; the numbers are the defaults of the Proxmox VE API.
func DefaultDatacenterHA() DatacenterHA {
	return DatacenterHA{
		ShutdownPolicy: ShutdownConditional,
		CRS:            CRS{Mode: "basic", Threshold: 0.3, Margin: 0.1, HoldRounds: 3, Method: "bruteforce"},
	}
}

// Datacenter is datacenter.cfg: lines "key: value", most of which nobody here looks at. The zero value is an empty file.
type Datacenter struct {
	lines []string
}

// ParseDatacenter reads datacenter.cfg. Every line is kept as it is; one that is no "key: value", no comment and not empty, and a key
// that stands twice, are an *model.InvalidError with its line.
func ParseDatacenter(text []byte) (Datacenter, error) {
	var d Datacenter
	seen := map[string]int{}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		d.lines = append(d.lines, line)
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		key, _, ok := datacenterLine(line)
		if !ok {
			return Datacenter{}, invalidLine(i+1, "line", "%q is no setting: write \"key: value\"", trimmed)
		}
		if at, twice := seen[key]; twice {
			return Datacenter{}, invalidLine(i+1, key, "stands already in line %d: remove one of the two", at)
		}
		seen[key] = i + 1
	}
	if len(text) == 0 {
		d.lines = nil
	}
	return d, nil
}

func datacenterLine(line string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(line, ":")
	if !ok || !optionKey.MatchString(key) {
		return "", "", false
	}
	return key, strings.TrimSpace(value), true
}

// Print writes the file.
func (d Datacenter) Print() []byte {
	if len(d.lines) == 0 {
		return nil
	}
	return []byte(strings.Join(d.lines, "\n") + "\n")
}

// Get returns the value of key and its line, counted from 1.
func (d Datacenter) Get(key string) (value string, line int, ok bool) {
	for i, l := range d.lines {
		if k, v, is := datacenterLine(l); is && k == key {
			return v, i + 1, true
		}
	}
	return "", 0, false
}

// Keys lists the keys in the order of the file.
func (d Datacenter) Keys() []string {
	var out []string
	for _, l := range d.lines {
		if k, _, ok := datacenterLine(l); ok && !strings.HasPrefix(strings.TrimSpace(l), "#") {
			out = append(out, k)
		}
	}
	return out
}

// With returns the file with key set where it stood, or at the end; an empty value removes the line. d itself stays as it is.
func (d Datacenter) With(key, value string) Datacenter {
	lines := slices.Clone(d.lines)
	_, line, ok := d.Get(key)
	switch {
	case ok && value == "":
		lines = slices.Delete(lines, line-1, line)
	case ok:
		lines[line-1] = key + ": " + value
	case value != "":
		lines = append(lines, key+": "+value)
	}
	return Datacenter{lines}
}

// HA reads the lines ha, crs and failures-to-tolerate; what is wrong in them is an *model.InvalidError with the line.
func (d Datacenter) HA() (DatacenterHA, error) {
	out := DefaultDatacenterHA()
	if err := d.props("ha", haKeys(), out.setHA); err != nil {
		return DatacenterHA{}, err
	}
	if err := d.props("failures-to-tolerate", tolerateKeys(), out.setTolerate); err != nil {
		return DatacenterHA{}, err
	}
	auto, needs := false, ""
	err := d.props("crs", crsKeys(), func(key, value string) error {
		auto = auto || key == "ha-auto-rebalance"
		if strings.HasPrefix(key, "ha-auto-rebalance-") {
			needs = key
		}
		return out.CRS.set(key, value)
	})
	if err != nil {
		return DatacenterHA{}, err
	}
	if needs != "" && !auto {
		_, line, _ := d.Get("crs")
		return DatacenterHA{}, invalidLine(line, "crs", "%s needs ha-auto-rebalance beside it: write ha-auto-rebalance=1 or remove it", needs)
	}
	return out, nil
}

func haKeys() []string { return []string{"shutdown_policy"} }

func tolerateKeys() []string { return []string{"nodes", "policy"} }

// propsFormat is that of a line with these keys; nodes may stand without its key.
func propsFormat(keys []string) Format {
	f := Format{Keys: keys}
	if keys[0] == "nodes" {
		f.Default = keys[0]
	}
	return f
}

// maxTolerate is more than anybody's cluster could lose.
const maxTolerate = 99

func (h *DatacenterHA) setTolerate(key, value string) error {
	if key == "policy" {
		h.TolerateWarn = value == "warn"
		return settingOf("failures-to-tolerate", key, value, "refuse", "warn")
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > maxTolerate {
		return model.Invalidf("failures-to-tolerate", "%q is not a number of nodes: use 0 to %d", value, maxTolerate)
	}
	h.Tolerate = n
	return nil
}

func crsKeys() []string {
	return []string{
		"ha", "ha-rebalance-on-start", "ha-auto-rebalance", "ha-auto-rebalance-threshold",
		"ha-auto-rebalance-method", "ha-auto-rebalance-hold-duration", "ha-auto-rebalance-margin",
	}
}

// props reads a line's property string.
func (d Datacenter) props(name string, keys []string, set func(key, value string) error) error {
	text, line, ok := d.Get(name)
	if !ok {
		return nil
	}
	ps, err := ParseProps(name, propsFormat(keys), text)
	if err != nil {
		return atLine(err, name, line)
	}
	for _, p := range ps {
		if err := set(p.Key, p.Value); err != nil {
			return atLine(err, name, line)
		}
	}
	return nil
}

func (h *DatacenterHA) setHA(key, value string) error {
	policies := []string{"conditional", "freeze", "failover", "migrate"}
	h.ShutdownPolicy = ShutdownPolicy(value)
	return settingOf("ha", key, value, policies...)
}

func (c *CRS) set(key, value string) (err error) {
	switch key {
	case "ha":
		c.Mode = value
		return settingOf("crs", key, value, "basic", "static", "dynamic")
	case "ha-rebalance-on-start":
		c.RebalanceOnStart, err = flag("crs", key, value)
	case "ha-auto-rebalance":
		c.AutoRebalance, err = flag("crs", key, value)
	case "ha-auto-rebalance-method":
		c.Method = value
		return settingOf("crs", key, value, "bruteforce", "topsis")
	case "ha-auto-rebalance-threshold":
		c.Threshold, err = number(key, value, 100)
		c.Threshold /= 100
	case "ha-auto-rebalance-margin":
		c.Margin, err = number(key, value, 100)
		c.Margin /= 100
	case "ha-auto-rebalance-hold-duration":
		c.HoldRounds, err = number(key, value, maxHold)
	}
	return err
}

// maxHold bounds the hold duration, so that it fits a time; a year.
const maxHold = 365 * 24 * 3600 / 20

func settingOf(param, key, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return model.Invalidf(param, "%s=%s is not allowed: use %s", key, value, strings.Join(allowed, ", "))
}

func flag(param, key, value string) (bool, error) {
	if v, err := parseBool(key, value); err == nil {
		return v, nil
	}
	return false, model.Invalidf(param, "%s=%s is neither true nor false: use 1 or 0", key, value)
}

func number(key, value string, most float64) (float64, error) {
	v, err := strconv.ParseFloat(value, 64)
	if err != nil || !(v >= 0 && v <= most) {
		return 0, model.Invalidf("crs", "%s=%s is not allowed: use a number from 0 to %g", key, value, most)
	}
	return v, nil
}

// WithHA writes h into the lines ha, crs and failures-to-tolerate; keys whose meaning did not change stay as they are. What could not be read back is an
// *model.InvalidError.
func (d Datacenter) WithHA(h DatacenterHA) (Datacenter, error) {
	old, err := d.HA()
	if err != nil {
		return Datacenter{}, err
	}
	out := d
	if h.ShutdownPolicy != old.ShutdownPolicy {
		out = out.setProp("ha", haKeys(), "shutdown_policy", string(h.ShutdownPolicy))
	}
	if h.Tolerate != old.Tolerate {
		out = out.setProp("failures-to-tolerate", tolerateKeys(), "nodes", strconv.Itoa(h.Tolerate))
	}
	if h.TolerateWarn != old.TolerateWarn {
		out = out.setProp("failures-to-tolerate", tolerateKeys(), "policy", map[bool]string{true: "warn", false: "refuse"}[h.TolerateWarn])
	}
	n, o := h.CRS, old.CRS
	for _, c := range []struct {
		changed    bool
		key, value string
	}{
		{n.Mode != o.Mode, "ha", n.Mode},
		{n.RebalanceOnStart != o.RebalanceOnStart, "ha-rebalance-on-start", digit(n.RebalanceOnStart)},
		{n.needsAuto() && !o.needsAuto() || n.AutoRebalance != o.AutoRebalance, "ha-auto-rebalance", digit(n.AutoRebalance)},
		{n.Threshold != o.Threshold, "ha-auto-rebalance-threshold", percent(n.Threshold)},
		{n.Method != o.Method, "ha-auto-rebalance-method", n.Method},
		{n.HoldRounds != o.HoldRounds, "ha-auto-rebalance-hold-duration", decimal(n.HoldRounds)},
		{n.Margin != o.Margin, "ha-auto-rebalance-margin", percent(n.Margin)},
	} {
		if c.changed {
			out = out.setProp("crs", crsKeys(), c.key, c.value)
		}
	}
	_, err = out.HA()
	return out, err
}

// needsAuto: one of the settings differs that stand beside ha-auto-rebalance only.
func (c CRS) needsAuto() bool {
	d := DefaultDatacenterHA().CRS
	return c.Threshold != d.Threshold || c.Margin != d.Margin || c.HoldRounds != d.HoldRounds || c.Method != d.Method
}

func (d Datacenter) setProp(line string, keys []string, key, value string) Datacenter {
	f := propsFormat(keys)
	text, _, _ := d.Get(line)
	ps, err := ParseProps(line, f, text)
	if err != nil {
		ps = nil
	}
	return d.With(line, ps.Set(key, value).Print(f))
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// percent prints a fraction; the rounding takes back what the division by 100 made of it.
func percent(v float64) string { return strconv.FormatFloat(100*v, 'g', 12, 64) }
