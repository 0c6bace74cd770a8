package report

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// DescribeHost reads what kind of machine this is. What cannot be read stays empty. QEMU and
// accelerator are what the agents say later.
func DescribeHost(v model.Version) Host {
	name, _ := os.Hostname()
	h := Host{
		Name: name, System: unquote(fieldOf("/etc/os-release", "PRETTY_NAME", "=")), CPU: fieldOf("/proc/cpuinfo", "model name", ":"),
		Cores: runtime.NumCPU(), LoadBegin: LoadAverage(), Sauh: v.Version, Commit: v.Commit, Go: v.Go,
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(text))
	}
	if kib, err := strconv.ParseInt(strings.TrimSuffix(fieldOf("/proc/meminfo", "MemTotal", ":"), " kB"), 10, 64); err == nil {
		h.MemoryMiB = kib >> 10
	}
	return h
}

// fieldOf returns the value of the first line of a file that begins with key.
func fieldOf(file, key, separator string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if k, v, ok := strings.Cut(in.Text(), separator); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func unquote(s string) string { return strings.Trim(s, `"`) }

// LoadAverage is the mean number of tasks that ran or wanted to over the last minute.
func LoadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}
