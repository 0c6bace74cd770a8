package pveconf

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Storage is one section of storage.cfg.
type Storage struct {
	ID   string
	Type string // "dir"
	// Path is the directory.
	Path string
	// Shared: the administrator says that every node sees the same files there.
	Shared bool
	// Content says what may lie there: images, iso …
	Content []string
	// Nodes are those that have the storage; empty means all.
	Nodes []string
	// Disable: nobody uses it.
	Disable bool
	// LateWrites: writes that a node handed to its kernel may arrive after its guests are dead, so
	// a node that loses its lease must be reset. A shared directory says so unless its line says late-writes no.
	LateWrites bool
	// Mountpoint must have a file system mounted on it before the storage is used; "" for no check.
	Mountpoint string
	// Unsupported says why Sauh cannot use the storage, "" if it can. Such a section is kept as it is.
	Unsupported string
	// Section is where it came from; it keeps order, comments and unknown keys.
	Section Section
}

var (
	storageID = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]$`)
	nodeWord  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// ValidateStorageID reports whether id can name a storage.
func ValidateStorageID(id string) error {
	if !storageID.MatchString(id) {
		return model.Invalidf("storage", "%q is no storage name: use at least two letters, digits, '-', '_' and '.', a letter first and no sign last", id)
	}
	return nil
}

// storageContents are the kinds of content that Proxmox VE knows.
func storageContents() []string {
	return []string{"images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import", "none"}
}

// ParseStorages reads storage.cfg. Storages of a type that Sauh does not have are returned
// with Unsupported set; everything else that is wrong is an *model.InvalidError with its line.
func ParseStorages(text []byte) ([]Storage, error) {
	f, err := ParseSections(text)
	if err != nil {
		return nil, err
	}
	lines := make(map[string]int)
	var out []Storage
	for _, s := range f.Sections {
		if n, dup := lines[s.ID]; dup {
			return nil, invalidLine(s.Line, "storage", "%s stands already in line %d: give one of the two another name", s.ID, n)
		}
		lines[s.ID] = s.Line
		st, err := StorageFromSection(s)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// StorageFromSection reads one section of storage.cfg; errors as ParseStorages.
func StorageFromSection(s Section) (Storage, error) {
	st := Storage{ID: s.ID, Type: s.Type, Section: s}
	if err := ValidateStorageID(s.ID); err != nil {
		return Storage{}, invalidLine(s.Line, "storage", "%s", strings.TrimPrefix(err.Error(), "storage: "))
	}
	if s.Type != "dir" {
		st.Unsupported = fmt.Sprintf("storage type %q is not supported by this version: only dir is", s.Type)
		return st, nil
	}
	return st, st.readDir()
}

// readDir fills in what a directory has.
func (st *Storage) readDir() error {
	s := st.Section
	st.Path, _ = s.Get("path")
	if !path.IsAbs(st.Path) {
		return s.invalid("path", "storage %s needs an absolute path such as /mnt/nas", st.ID)
	}
	var err error
	if st.Shared, err = s.boolean("shared", false); err != nil {
		return err
	}
	if st.Disable, err = s.boolean("disable", false); err != nil {
		return err
	}
	if st.LateWrites, err = lateWrites(s, st.Shared); err != nil {
		return err
	}
	if st.Mountpoint, err = mountpoint(s, st.Path); err != nil {
		return err
	}
	if st.Content, err = content(s); err != nil {
		return err
	}
	st.Nodes = s.list("nodes")
	for _, n := range st.Nodes {
		if !nodeWord.MatchString(n) {
			return s.invalid("nodes", "%q is not a node name: separate names by commas", n)
		}
	}
	return nil
}

// lateWrites is Sauh's own key. Local directories cannot have any: nobody else opens their files.
func lateWrites(s Section, shared bool) (bool, error) {
	switch v, ok := s.Get("late-writes"); {
	case !ok:
		return shared, nil
	case v == "yes":
		return true, nil
	case v == "no":
		return false, nil
	default:
		return false, s.invalid("late-writes", "%q is not allowed: use yes, or no if a write that a node sent can never arrive after the node's guests are dead", v)
	}
}

// mountpoint reads is_mountpoint: a boolean, or the path of the mount point itself.
func mountpoint(s Section, dir string) (string, error) {
	v, ok := s.Get("is_mountpoint")
	if ok && path.IsAbs(v) {
		return v, nil
	}
	yes, err := s.boolean("is_mountpoint", false)
	if err != nil {
		return "", s.invalid("is_mountpoint", "%q is not allowed: use yes, no, or the path of the mount point", v)
	}
	if !yes {
		return "", nil
	}
	return dir, nil
}

// content reads the kinds allowed; Proxmox VE's default for a directory is images and rootdir.
func content(s Section) ([]string, error) {
	if _, ok := s.Get("content"); !ok {
		return []string{"images", "rootdir"}, nil
	}
	kinds := s.list("content")
	for _, k := range kinds {
		if !slices.Contains(storageContents(), k) {
			return nil, s.invalid("content", "%q is not allowed: use %s", k, strings.Join(storageContents(), ", "))
		}
	}
	return kinds, nil
}

// OnNode reports whether the storage is configured for node and not disabled.
func (st Storage) OnNode(node string) bool {
	return !st.Disable && st.Unsupported == "" && (len(st.Nodes) == 0 || slices.Contains(st.Nodes, node))
}

// PrintStorages writes storage.cfg from the storages' fields. Lines whose meaning did not change stay as
// they are; sections of unsupported types are written as they came. Comments after the last section are dropped:
// who wants to keep them edits the SectionFile.
func PrintStorages(storages []Storage) ([]byte, error) {
	var f SectionFile
	for _, st := range storages {
		s, err := st.section()
		if err != nil {
			return nil, err
		}
		f.Sections = append(f.Sections, s)
	}
	return f.Print()
}

// section writes the fields that differ from those in st.Section back into it, and validates the result.
func (st Storage) section() (Section, error) {
	s := st.Section
	s.Type, s.ID = st.Type, st.ID
	if st.Type != "dir" {
		return s, nil
	}
	var old Storage
	if read, err := StorageFromSection(s); err == nil {
		old = read
	}
	set := func(key string, same bool, value, absent string) {
		switch _, has := s.Get(key); {
		case same && (has || value == absent):
		case value == absent:
			s = s.Without(key)
		default:
			s = s.With(key, value)
		}
	}
	set("path", st.Path == old.Path, st.Path, "")
	set("content", slices.Equal(st.Content, old.Content), strings.Join(st.Content, ","), "images,rootdir")
	set("nodes", slices.Equal(st.Nodes, old.Nodes), strings.Join(st.Nodes, ","), "")
	set("shared", st.Shared == old.Shared, digit(st.Shared), "0")
	set("disable", st.Disable == old.Disable, digit(st.Disable), "0")
	set("late-writes", st.LateWrites == old.LateWrites && st.Shared == old.Shared, yesNo(st.LateWrites), yesNo(st.Shared))
	set("is_mountpoint", st.Mountpoint == old.Mountpoint, st.Mountpoint, "")
	_, err := StorageFromSection(s)
	return s, err
}

func digit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
