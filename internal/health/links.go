package health

import (
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	core "sauh.dev/sauh/internal/core/health"
)

// Bridges looks at bridges of this process's network namespace. It returns one answer for each name.
func Bridges(names []string) (map[string]core.Bridge, error) {
	seen := make(map[string]core.Bridge, len(names))
	if len(names) == 0 {
		return seen, nil
	}
	// The kernel's answer may be cut short while interfaces come and go: then it is asked again at the next look.
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	index := map[int]string{}
	for _, name := range names {
		seen[name] = core.Bridge{}
		for _, l := range links {
			if a := l.Attrs(); a.Name == name {
				seen[name] = core.Bridge{There: true, Up: a.RawFlags&unix.IFF_UP != 0}
				index[a.Index] = name
			}
		}
	}
	for _, l := range links {
		a := l.Attrs()
		name, ours := index[a.MasterIndex]
		if !ours || a.MasterIndex == 0 || l.Type() == "tuntap" || strings.HasPrefix(a.Name, "fwpr") {
			continue
		}
		b := seen[name]
		b.Cards = append(b.Cards, card(a))
		seen[name] = b
	}
	return seen, nil
}

func card(a *netlink.LinkAttrs) core.Card {
	const up = unix.IFF_UP | unix.IFF_LOWER_UP
	// Some drivers never say more than "unknown".
	passes := a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown
	c := core.Card{Name: a.Name, Carries: a.RawFlags&up == up && passes, State: a.OperState.String()}
	if a.RawFlags&unix.IFF_UP == 0 {
		c.State = "switched off"
	}
	return c
}
