package pveconf

import "strings"

// Net is a network card of a guest: net[n].
type Net struct {
	Key      string // "net0"
	Model    string // "virtio", "e1000" …
	MAC      string // upper case; "" until one is generated
	Bridge   string
	Firewall bool
	LinkDown bool
	MTU      int     // 0: QEMU's default; 1: the bridge's
	Tag      int     // VLAN of the card, 0 for none
	Trunks   []Range // VLANs that pass through, nil for all
	Rate     float64 // megabytes a second, 0 is no limit
	Queues   int     // 0 is one
	Props    Props
}

// NetFormat is the format of a network card's property string.
func NetFormat() Format { return formatOf("net0") }

// ParseNet reads the value of net[n].
func ParseNet(key, value string) (Net, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return Net{}, err
	}
	return Net{
		Key: key, Model: os.text("model"), MAC: strings.ToUpper(os.text("macaddr")), Bridge: os.text("bridge"),
		Firewall: os.flag("firewall"), LinkDown: os.flag("link_down"), MTU: int(os.integer("mtu")),
		Tag: int(os.integer("tag")), Trunks: parseRanges(os.list("trunks")), Rate: os.number("rate"), Queues: int(os.integer("queues")),
		Props: os.Props,
	}, nil
}
