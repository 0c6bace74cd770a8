package agent

import (
	"crypto/rand"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

func editConfig(conf *pveconf.Guest, set map[string]string, del []string) ([]byte, error) {
	for _, key := range del {
		if !pveconf.Known(key) {
			return nil, model.Invalidf(key, "no such option")
		}
		if err := detach(conf, key); err != nil {
			return nil, err
		}
	}
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		v := set[k]
		if err := refuseNewVolume(k, v); err != nil {
			return nil, err
		}
		if strings.HasPrefix(k, "net") {
			var err error
			if v, err = withMAC(k, v); err != nil {
				return nil, err
			}
		}
		if err := conf.Set(k, v); err != nil {
			return nil, err
		}
	}
	return conf.Bytes(), nil
}

// detach deletes a key. A disk's volume is kept as the first free unused[n], so that nothing is lost.
func detach(conf *pveconf.Guest, key string) error {
	for _, d := range conf.Disks() {
		if _, isVolume := volumeStorage(d.Volume); d.Key != key || !isVolume || d.CDROM {
			continue
		}
		for n := 0; ; n++ {
			unused := "unused" + strconv.Itoa(n)
			if _, taken := conf.Get(unused); !taken {
				if err := conf.Set(unused, d.Volume); err != nil {
					return err
				}
				break
			}
		}
	}
	conf.Delete(key)
	return nil
}

// refuseNewVolume refuses what only the creation of a guest can do.
func refuseNewVolume(key, value string) error {
	family, _, indexed := pveconf.SplitIndex(key)
	if !indexed || family != "virtio" && family != "scsi" {
		return nil
	}
	d, err := pveconf.ParseDisk(key, value)
	if err != nil {
		return err
	}
	name, isVolume := volumeStorage(d.Volume)
	_, err = strconv.ParseFloat(strings.TrimPrefix(d.Volume, name+":"), 64)
	if isVolume && err == nil || d.ImportFrom != "" {
		return model.Invalidf(key, "a guest that exists cannot be given a new volume this way yet: make it with `sauh storage alloc %s` and name the volume that it prints", name)
	}
	return nil
}

// withMAC gives a network card without an address one of the range that Proxmox VE uses.
func withMAC(key, value string) (string, error) {
	n, err := pveconf.ParseNet(key, value)
	if err != nil || n.MAC != "" {
		return value, err
	}
	var b [3]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on Linux
	card := pveconf.Prop{Key: n.Model, Value: fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])}
	props := append(pveconf.Props{card}, n.Props.Without("model")...) // first, as Proxmox VE writes it
	return props.Print(pveconf.NetFormat()), nil
}
