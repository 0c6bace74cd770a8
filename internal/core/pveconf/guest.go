package pveconf

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the digest of Proxmox VE's API is SHA-1; it detects changes and protects nothing
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Guest is one guest's file. The zero value is an empty file. It is not safe
// for concurrent use.
type Guest struct {
	lines    []line // those above the first section
	sections []GuestSection
}

// line is one line of the file. What is no entry and no comment is blank.
type line struct {
	key, value string // of an entry
	comment    bool   // of a comment the value is its text
	raw        string // as it was read, its end included; "" if it was set since
	number     int    // in the file that was parsed, 0 if set since
}

// GuestSection is a part of the file after the current configuration: a snapshot or
// the changes that wait for the next start.
type GuestSection struct {
	Name string // as between the brackets: "before-upgrade", "PENDING"
	Text string // the lines below, verbatim
	head string // the line of the name, verbatim
	line int    // its number
}

var (
	// entryLine, sectionLine: as in Proxmox VE's qemu-server.
	entryLine   = regexp.MustCompile(`^([a-z][a-z_\-]*\d*):\s*(.*\S)\s*$`)
	sectionLine = regexp.MustCompile(`^\[([^\]]*)\]\s*$`)
)

// ParseGuest reads a guest's file. An error is a *model.InvalidError with the
// line's number: a line that is no "key: value", a key given twice, a wrong value
// of a key that Proxmox VE has. Other keys are kept. Sections are not looked into:
// [Guest.Snapshots] and [Guest.Pending] do that.
func ParseGuest(text []byte) (*Guest, error) {
	g := &Guest{}
	lines := strings.SplitAfter(string(text), "\n")
	for i, raw := range lines {
		if sectionLine.MatchString(strings.TrimRight(raw, "\r\n")) {
			return g, g.parseSections(lines[i:], i)
		}
		if err := g.parseLine(raw, i+1); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *Guest) parseLine(raw string, n int) error {
	text := strings.TrimRight(raw, "\r\n")
	if strings.TrimSpace(text) == "" {
		if raw != "" {
			g.lines = append(g.lines, line{raw: raw, number: n})
		}
		return nil
	}
	if comment, ok := strings.CutPrefix(text, "#"); ok {
		g.lines = append(g.lines, line{comment: true, value: decodeText(comment), raw: raw, number: n})
		return nil
	}
	m := entryLine.FindStringSubmatch(text)
	if m == nil {
		return &model.InvalidError{
			Param: fmt.Sprintf("%.60q", text), Line: n,
			Msg: `not a configuration line: write "key: value", "# description" or "[snapshot]"`,
		}
	}
	key, value := canonical(m[1]), m[2]
	if key == "description" { // as files of old versions have it
		g.lines = append(g.lines, line{comment: true, value: decodeText(value), raw: raw, number: n})
		return nil
	}
	if i := g.find(key); i >= 0 {
		return &model.InvalidError{Param: key, Line: n, Msg: fmt.Sprintf("given twice, first in line %d: keep one of them", g.lines[i].number)}
	}
	if Known(key) {
		if err := Validate(key, value); err != nil {
			return atLine(err, key, n)
		}
	}
	g.lines = append(g.lines, line{key: key, value: value, raw: raw, number: n})
	return nil
}

// atLine adds the line to an error of Validate.
func atLine(err error, key string, n int) error {
	inv, ok := err.(*model.InvalidError) //nolint:errorlint // Validate returns it unwrapped
	if !ok {
		return &model.InvalidError{Param: key, Line: n, Msg: err.Error()}
	}
	return &model.InvalidError{Param: inv.Param, Line: n, Msg: inv.Msg}
}

// parseSections keeps everything from the first section on as it is.
func (g *Guest) parseSections(lines []string, before int) error {
	for i, raw := range lines {
		m := sectionLine.FindStringSubmatch(strings.TrimRight(raw, "\r\n"))
		if m == nil {
			g.sections[len(g.sections)-1].Text += raw
			continue
		}
		for _, s := range g.sections {
			if strings.EqualFold(s.Name, m[1]) {
				return &model.InvalidError{Param: "[" + m[1] + "]", Line: before + i + 1, Msg: "this section is there twice: keep one of them"}
			}
		}
		g.sections = append(g.sections, GuestSection{Name: m[1], head: raw, line: before + i + 1})
	}
	return nil
}

// Bytes prints the file. Lines and sections that were not changed are as they were read.
func (g *Guest) Bytes() []byte {
	var b bytes.Buffer
	for _, l := range g.lines {
		endLine(&b)
		b.WriteString(l.print())
	}
	for _, s := range g.sections {
		endLine(&b)
		b.WriteString(s.head + s.Text)
	}
	return b.Bytes()
}

// endLine ends a line that was read without an end, where something follows it now.
func endLine(b *bytes.Buffer) {
	if b.Len() > 0 && b.Bytes()[b.Len()-1] != '\n' {
		b.WriteByte('\n')
	}
}

func (l line) print() string {
	switch {
	case l.raw != "":
		return l.raw
	case l.comment:
		return "#" + encodeText(l.value) + "\n"
	}
	return l.key + ": " + l.value + "\n"
}

// Digest is the SHA-1 of a file's bytes in hexadecimal, as the API hands it out.
func Digest(file []byte) string {
	sum := sha1.Sum(file) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}

// find returns the index of an entry's line, or -1.
func (g *Guest) find(key string) int {
	key = canonical(key)
	return slices.IndexFunc(g.lines, func(l line) bool { return l.key == key && key != "" })
}

// Keys lists the keys in the order of the file; "description" comes first if there is one.
func (g *Guest) Keys() []string {
	var keys []string
	if g.Description() != "" {
		keys = append(keys, "description")
	}
	for _, l := range g.lines {
		if l.key != "" {
			keys = append(keys, l.key)
		}
	}
	return keys
}

// Values returns the current configuration without sections.
func (g *Guest) Values() map[string]string {
	m := make(map[string]string, len(g.lines))
	for _, k := range g.Keys() {
		m[k], _ = g.Get(k)
	}
	return m
}

// Sections lists the snapshots and pending changes that the file holds.
func (g *Guest) Sections() []GuestSection { return append([]GuestSection(nil), g.sections...) }

// Get returns the value of key as it stands in the file.
func (g *Guest) Get(key string) (string, bool) {
	if key == "description" {
		text := g.Description()
		return text, text != ""
	}
	if i := g.find(key); i >= 0 {
		return g.lines[i].value, true
	}
	return "", false
}

// Set validates value and gives it to key: in its place if it is there, at the
// end otherwise. The error is a *model.InvalidError and leaves g as it was.
func (g *Guest) Set(key, value string) error {
	if key == "description" {
		return g.setDescription(value)
	}
	value = strings.TrimSpace(value)
	if value == "" {
		return model.Invalidf(key, "the value is empty: delete the key instead")
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return model.Invalidf(key, "the value has a line break in it: write one line")
	}
	if err := Validate(key, value); err != nil {
		return err
	}
	i := g.find(key)
	switch {
	case i < 0:
		g.insert(g.end(), line{key: canonical(key), value: value})
	case g.lines[i].value != value:
		g.lines[i] = line{key: g.lines[i].key, value: value}
	}
	return nil
}

// end is where a new entry goes: after the last line that is not blank.
func (g *Guest) end() int {
	for i := len(g.lines) - 1; i >= 0; i-- {
		if g.lines[i].key != "" || g.lines[i].comment {
			return i + 1
		}
	}
	return 0
}

func (g *Guest) insert(at int, lines ...line) { g.lines = slices.Insert(g.lines, at, lines...) }

func (g *Guest) setDescription(text string) error {
	if err := Validate("description", text); err != nil {
		return err
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if text == g.Description() {
		return nil
	}
	at := max(0, slices.IndexFunc(g.lines, func(l line) bool { return l.comment }))
	g.Delete("description")
	var lines []line
	for one := range strings.Lines(text) {
		lines = append(lines, line{comment: true, value: strings.TrimSuffix(one, "\n")})
	}
	g.insert(at, lines...)
	return nil
}

// Delete removes key and reports whether it was there.
func (g *Guest) Delete(key string) bool {
	key = canonical(key)
	before := len(g.lines)
	g.lines = slices.DeleteFunc(g.lines, func(l line) bool {
		return l.comment && key == "description" || l.key != "" && l.key == key
	})
	return len(g.lines) < before
}

// Clone returns a copy that shares nothing with g.
func (g *Guest) Clone() *Guest {
	return &Guest{slices.Clone(g.lines), slices.Clone(g.sections)}
}

const hexDigits = "0123456789ABCDEF"

// encodeText escapes what Proxmox VE escapes in a description line (':', control
// characters and every byte above '~') and, so that the text comes back as it was,
// a '%' that the reader would take for an escape.
func encodeText(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		_, escape := unhex(s, i)
		if c < 0x20 || c > 0x7e || c == ':' || escape {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// decodeText undoes encodeText; a '%' without two hexadecimal digits stays.
func decodeText(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c, ok := unhex(s, i); ok {
			b.WriteByte(c)
			i += 2
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// unhex reads the escape at s[i].
func unhex(s string, i int) (byte, bool) {
	if s[i] != '%' || i+2 >= len(s) {
		return 0, false
	}
	b, err := hex.DecodeString(s[i+1 : i+3])
	if err != nil {
		return 0, false
	}
	return b[0], true
}
