//go:build linux

package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Cgroup2Root is where the host has cgroup v2 mounted, from /proc/self/mountinfo.
func Cgroup2Root() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) > 4 && f[3] == "/" && strings.HasPrefix(after, "cgroup2 ") {
			return f[4], nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted: mount it with `mount -t cgroup2 none /sys/fs/cgroup`")
}

// MakeCgroup makes the cgroup at dir and gives its children every controller that dir has.
// It fails with fs.ErrExist if the cgroup exists.
func MakeCgroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return DelegateControllers(dir)
}

// DelegateControllers enables in the children of the cgroup at dir what dir itself has.
func DelegateControllers(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(text)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0)
		if err != nil {
			return fmt.Errorf("enable controller %s below %s: %w", name, dir, err)
		}
	}
	return nil
}

// CgroupTree lists the cgroups at dir and below, children before their parents.
func CgroupTree(dir string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	slices.Reverse(dirs)
	return dirs, err
}

// CgroupProcesses lists the processes in the cgroup at dir and below, as the caller's pid namespace numbers them.
func CgroupProcesses(dir string) ([]int, error) {
	dirs, err := CgroupTree(dir)
	var pids []int
	for _, d := range dirs {
		text, readErr := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if readErr != nil {
			continue // it was removed in between
		}
		for _, w := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(w); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return pids, err
}

// JoinCgroup moves the calling process into the cgroup at dir.
func JoinCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

// LeaveCPUCgroupV1 moves the calling process to the root of the cgroup v1 cpu
// hierarchy, if there is one: below it a kernel with RT_GROUP_SCHED refuses
// real-time scheduling to groups without a share of it.
func LeaveCPUCgroupV1() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) > 4 && len(g) > 2 && g[0] == "cgroup" && slices.Contains(strings.Split(g[2], ","), "cpu") {
			return JoinCgroup(f[4])
		}
	}
	return nil
}
