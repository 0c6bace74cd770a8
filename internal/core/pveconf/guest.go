package pveconf

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the digest of Proxmox VE's API is SHA-1; it detects changes and protects nothing
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Guest is one guest's file. The zero value is an empty file. It is not safe
// for concurrent use.
type Guest struct {
	description string
	entries     []entry
	sections    []GuestSection
}

type entry struct {
	key, value string
	line       int // in the file that was parsed, 0 if set since
}

// GuestSection is a part of the file after the current configuration: a snapshot or
// the changes that wait for the next start.
type GuestSection struct {
	Name string // as between the brackets: "before-upgrade", "PENDING"
	Text string // the lines below, verbatim
}

var (
	// entryLine, sectionLine: as in Proxmox VE's qemu-server.
	entryLine   = regexp.MustCompile(`^([a-z][a-z_\-]*\d*):\s*(.*\S)\s*$`)
	sectionLine = regexp.MustCompile(`^\[([^\]]*)\]\s*$`)
)

// ParseGuest reads a guest's file. An error is a *model.InvalidError with the
// line's number: a line that is no "key: value", a key given twice, a wrong value
// of a key that is in use. Keys that nothing here knows are kept.
func ParseGuest(text []byte) (*Guest, error) {
	g := &Guest{}
	lines := strings.SplitAfter(string(text), "\n")
	for i, raw := range lines {
		line := strings.TrimRight(raw, "\r\n")
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			return g, g.parseSections(lines[i:], i)
		}
		if err := g.parseLine(line, i+1); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *Guest) parseLine(line string, n int) error {
	if strings.TrimSpace(line) == "" {
		return nil
	}
	if text, ok := strings.CutPrefix(line, "#"); ok {
		g.description += decodeText(text) + "\n"
		return nil
	}
	m := entryLine.FindStringSubmatch(line)
	if m == nil {
		return &model.InvalidError{
			Param: fmt.Sprintf("%.60q", line), Line: n,
			Msg: `not a configuration line: write "key: value", "# description" or "[snapshot]"`,
		}
	}
	key, value := m[1], m[2]
	if key == "description" {
		g.description += decodeText(value) + "\n"
		return nil
	}
	if key == "cdrom" { // Proxmox VE's own other name
		key = "ide2"
	}
	if old := g.find(key); old != nil {
		return &model.InvalidError{Param: key, Line: n, Msg: fmt.Sprintf("given twice, first in line %d: keep one of them", old.line)}
	}
	if Known(key) {
		if err := Validate(key, value); err != nil {
			return atLine(err, key, n)
		}
	}
	g.entries = append(g.entries, entry{key, value, n})
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
		g.sections = append(g.sections, GuestSection{Name: m[1]})
	}
	return nil
}

// Bytes prints the file: description, keys in order, sections.
func (g *Guest) Bytes() []byte {
	var b bytes.Buffer
	for line := range strings.Lines(g.description) {
		b.WriteString("#" + encodeText(strings.TrimSuffix(line, "\n")) + "\n")
	}
	for _, e := range g.entries {
		b.WriteString(e.key + ": " + e.value + "\n")
	}
	for _, s := range g.sections {
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.WriteString("[" + s.Name + "]\n" + strings.TrimRight(s.Text, "\n") + "\n")
	}
	return b.Bytes()
}

// Digest is the SHA-1 of a file's bytes in hexadecimal, as the API hands it out.
func Digest(file []byte) string {
	sum := sha1.Sum(file) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}

func (g *Guest) find(key string) *entry {
	for i := range g.entries {
		if g.entries[i].key == key {
			return &g.entries[i]
		}
	}
	return nil
}

// Keys lists the keys in the order of the file; "description" comes first if there is one.
func (g *Guest) Keys() []string {
	var keys []string
	if g.description != "" {
		keys = append(keys, "description")
	}
	for _, e := range g.entries {
		keys = append(keys, e.key)
	}
	return keys
}

// Values returns the current configuration without sections.
func (g *Guest) Values() map[string]string {
	m := make(map[string]string, len(g.entries))
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
		return g.description, g.description != ""
	}
	if e := g.find(key); e != nil {
		return e.value, true
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
	if e := g.find(key); e != nil {
		e.value = value
		return nil
	}
	g.entries = append(g.entries, entry{key: key, value: value})
	return nil
}

func (g *Guest) setDescription(text string) error {
	if err := Validate("description", text); err != nil {
		return err
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	g.description = text
	return nil
}

// Delete removes key and reports whether it was there.
func (g *Guest) Delete(key string) bool {
	if key == "description" {
		had := g.description != ""
		g.description = ""
		return had
	}
	for i := range g.entries {
		if g.entries[i].key == key {
			g.entries = append(g.entries[:i:i], g.entries[i+1:]...)
			return true
		}
	}
	return false
}

// Clone returns a copy that shares nothing with g.
func (g *Guest) Clone() *Guest {
	return &Guest{g.description, append([]entry(nil), g.entries...), append([]GuestSection(nil), g.sections...)}
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
