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
		if err := replace(conf, k, v); err != nil {
			return nil, err
		}
	}
	return conf.Bytes(), nil
}

// replace sets a key. A disk's earlier volume is kept as unused[n], and its new one is no longer unused.
func replace(conf *pveconf.Guest, key, value string) error {
	if isDiskKey(key) {
		next, err := pveconf.ParseDisk(key, value)
		if err != nil {
			return err
		}
		if now, ok := diskAt(conf, key); ok && now.Volume != next.Volume {
			if err := detach(conf, key); err != nil {
				return err
			}
		}
	}
	if err := conf.Set(key, value); err != nil {
		return err
	}
	return attach(conf, key)
}

func isDiskKey(key string) bool {
	family, _, indexed := pveconf.SplitIndex(key)
	return indexed && (family == "virtio" || family == "scsi")
}

func diskAt(conf *pveconf.Guest, key string) (pveconf.Disk, bool) {
	for _, d := range conf.Disks() {
		if d.Key == key {
			return d, true
		}
	}
	return pveconf.Disk{}, false
}

// attach refuses a volume that the guest has as another disk already, and takes one that it has now from those that are unused.
func attach(conf *pveconf.Guest, key string) error {
	disk, ok := diskAt(conf, key)
	if !ok || disk.Volume == "none" {
		return nil
	}
	for _, d := range conf.Disks() {
		if d.Key != key && d.Volume == disk.Volume {
			return model.Invalidf(key, "%s is the guest's %s already: a volume can be one disk only", disk.Volume, d.Key)
		}
	}
	for _, d := range unusedDisks(conf) {
		if d.Volume == disk.Volume {
			conf.Delete(d.Key)
		}
	}
	return nil
}

// detach deletes a key. A disk's volume is kept as the first free unused[n], so that nothing is lost.
func detach(conf *pveconf.Guest, key string) error {
	if d, ok := diskAt(conf, key); ok && keepsVolume(d) {
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

func keepsVolume(d pveconf.Disk) bool {
	_, isVolume := volumeStorage(d.Volume)
	return isVolume && !d.CDROM
}

// refuseNewVolume refuses what only the creation of a guest can do.
func refuseNewVolume(key, value string) error {
	if !isDiskKey(key) {
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
