package pveconf

import (
	"regexp"
	"strings"
)

var (
	// configID is the format pve-configid of the Proxmox VE API.
	configID = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]+$`)
	// haSID is the format pve-ha-resource-id of the Proxmox VE API, without the characters that separate a list.
	haSID = regexp.MustCompile(`^[a-z]+:[^\s,;]+$`)
)

// maxPriority bounds a node's priority, so that it fits an int anywhere; Proxmox VE has no bound.
const maxPriority = 1<<31 - 1

// maxComment is the maxLength of comments in the Proxmox VE API, in characters.
const maxComment = 4096

// comment reads a comment that Proxmox VE writes encoded, as it does a guest's description.
func (s Section) comment() (string, error) {
	v, _ := s.Get("comment")
	text := decodeText(v)
	if n := len([]rune(text)); n > maxComment {
		return "", s.invalid("comment", "has %d characters: %d is the limit", n, maxComment)
	}
	return text, nil
}

// withText sets key to text in that form, or removes it. Blanks at either end go.
func (s Section) withText(key, text string) Section {
	if text = strings.TrimSpace(text); text == "" {
		return s.Without(key)
	}
	return s.With(key, encodeText(text))
}

// WithComment sets the comment of a rule in the form in which it is stored, or removes it. It refuses one that is too long.
func (s Section) WithComment(text string) (Section, error) {
	out := s.withText("comment", text)
	_, err := out.comment()
	return out, err
}
