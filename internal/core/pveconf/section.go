package pveconf

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Option is one indented "key value" line of a section.
type Option struct {
	// Comments are the comment lines above it, with their '#'.
	Comments []string
	Key      string
	// Value is "" for a key that stands alone, such as "disable".
	Value string
	// Line is where it stood in the file, 0 if it did not come from one.
	Line int
}

// Section is a "type: id" line and the options below it.
type Section struct {
	Comments []string // the comment lines above the header
	Type, ID string
	Options  []Option
	Line     int // of the header, 0 if it did not come from a file
}

// SectionFile is a file such as storage.cfg, ha/resources.cfg or ha/rules.cfg.
// The zero value is an empty file.
type SectionFile struct {
	Sections []Section
	Trailer  []string // comment lines after the last option
}

var (
	sectionHeader = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_-]*):[ \t]*(\S+)$`)
	optionKey     = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)
)

// ParseSections reads a section file. Order, comments and keys that nobody knows are kept;
// blank lines and indentation are not. A line that is wrong is named by an *model.InvalidError.
func ParseSections(text []byte) (SectionFile, error) {
	var f SectionFile
	var comments []string
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimRight(line, " \t\r")
		switch {
		case line == "":
		case strings.ContainsRune(line, '\r'):
			return SectionFile{}, invalidLine(i+1, "line", "has a carriage return inside: write one key and its value on each line")
		case strings.HasPrefix(strings.TrimLeft(line, " \t"), "#"):
			comments = append(comments, strings.TrimLeft(line, " \t"))
		case line[0] == ' ' || line[0] == '\t':
			if err := f.addOption(comments, line, i+1); err != nil {
				return SectionFile{}, err
			}
			comments = nil
		default:
			if err := f.addSection(comments, line, i+1); err != nil {
				return SectionFile{}, err
			}
			comments = nil
		}
	}
	f.Trailer = comments
	return f, nil
}

func (f *SectionFile) addSection(comments []string, line string, n int) error {
	m := sectionHeader.FindStringSubmatch(line)
	if m == nil {
		return invalidLine(n, "section", "%q is no section header: write \"type: id\", and indent the lines that belong to it", line)
	}
	s := Section{Comments: comments, Type: strings.ToLower(m[1]), ID: m[2], Line: n}
	if i := slices.IndexFunc(f.Sections, func(o Section) bool { return o.Type == s.Type && o.ID == s.ID }); i >= 0 {
		return invalidLine(n, "section", "%s: %s stands already in line %d: remove one of the two", s.Type, s.ID, f.Sections[i].Line)
	}
	f.Sections = append(f.Sections, s)
	return nil
}

func (f *SectionFile) addOption(comments []string, line string, n int) error {
	trimmed := strings.TrimLeft(line, " \t")
	key, value := trimmed, ""
	if i := strings.IndexAny(trimmed, " \t"); i >= 0 {
		key, value = trimmed[:i], strings.TrimLeft(trimmed[i:], " \t")
	}
	if len(f.Sections) == 0 {
		return invalidLine(n, key, "stands before the first section: put a line such as \"dir: nas\" above it")
	}
	if !optionKey.MatchString(key) {
		return invalidLine(n, "key", "%q is no key: use a letter, then letters, digits, '-' and '_'", key)
	}
	s := &f.Sections[len(f.Sections)-1]
	if i := s.index(key); i >= 0 {
		return invalidLine(n, key, "stands already in line %d: remove one of the two", s.Options[i].Line)
	}
	s.Options = append(s.Options, Option{Comments: comments, Key: key, Value: value, Line: n})
	return nil
}

// Print writes the file in the form that Proxmox VE gives it: options indented
// by a tab, a blank line between sections. It refuses a name, key or value that
// could not be read back as the same.
func (f SectionFile) Print() ([]byte, error) {
	var b strings.Builder
	for i, s := range f.Sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		if err := s.print(&b); err != nil {
			return nil, err
		}
	}
	if len(f.Trailer) > 0 && len(f.Sections) > 0 {
		b.WriteByte('\n')
	}
	if err := printComments(&b, "", f.Trailer); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

func (s Section) print(b *strings.Builder) error {
	header := s.Type + ": " + s.ID
	if !sectionHeader.MatchString(header) {
		return model.Invalidf("section", "%q is no section header: type and id must be words without blanks", header)
	}
	if err := printComments(b, "", s.Comments); err != nil {
		return err
	}
	b.WriteString(header + "\n")
	for _, o := range s.Options {
		if !optionKey.MatchString(o.Key) {
			return model.Invalidf("key", "%q is no key: use a letter, then letters, digits, '-' and '_'", o.Key)
		}
		if strings.ContainsAny(o.Value, "\r\n") {
			return model.Invalidf(o.Key, "must stand on one line")
		}
		if err := printComments(b, "\t", o.Comments); err != nil {
			return err
		}
		b.WriteString(strings.TrimRight("\t"+o.Key+" "+strings.Trim(o.Value, " \t"), " ") + "\n")
	}
	return nil
}

func printComments(b *strings.Builder, indent string, comments []string) error {
	for _, c := range comments {
		if !strings.HasPrefix(c, "#") || strings.ContainsAny(c, "\r\n") {
			return model.Invalidf("comment", "%q is no comment line: it must begin with '#' and stand on one line", c)
		}
		b.WriteString(indent + c + "\n")
	}
	return nil
}

func (s Section) index(key string) int {
	return slices.IndexFunc(s.Options, func(o Option) bool { return o.Key == key })
}

// Get returns the value of key; ok is false if the section does not have it.
func (s Section) Get(key string) (value string, ok bool) {
	if i := s.index(key); i >= 0 {
		return s.Options[i].Value, true
	}
	return "", false
}

// With returns the section with key set: where it stood, or at the end. s itself stays as it is.
func (s Section) With(key, value string) Section {
	s.Options = slices.Clone(s.Options)
	if i := s.index(key); i >= 0 {
		s.Options[i].Value = value
	} else {
		s.Options = append(s.Options, Option{Key: key, Value: value})
	}
	return s
}

// Without returns the section without key. s itself stays as it is.
func (s Section) Without(key string) Section {
	s.Options = slices.DeleteFunc(slices.Clone(s.Options), func(o Option) bool { return o.Key == key })
	return s
}

// line is where key stands, or the header if the section does not have it.
func (s Section) line(key string) int {
	if i := s.index(key); i >= 0 {
		return s.Options[i].Line
	}
	return s.Line
}

// invalid names key of s, and its line.
func (s Section) invalid(key, format string, args ...any) error {
	return invalidLine(s.line(key), key, format, args...)
}

func invalidLine(line int, param, format string, args ...any) error {
	return &model.InvalidError{Param: param, Line: line, Msg: fmt.Sprintf(format, args...)}
}

// boolean reads Proxmox VE's spellings of true and false; a key that stands alone is true.
func (s Section) boolean(key string, absent bool) (bool, error) {
	v, ok := s.Get(key)
	if !ok {
		return absent, nil
	}
	switch strings.ToLower(v) {
	case "", "1", "yes", "on", "true":
		return true, nil
	case "0", "no", "off", "false":
		return false, nil
	}
	return false, s.invalid(key, "%q is neither true nor false: use 1 or 0", v)
}

// list reads words separated by commas, semicolons or blanks.
func (s Section) list(key string) []string {
	v, ok := s.Get(key)
	if !ok {
		return nil
	}
	return strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune(",; \t", r) })
}
