package pveconf

import "strings"

// indexLimit is the highest number of a family of numbered keys, from the Proxmox VE manual.
func indexLimit(family string) (int, bool) {
	switch family {
	case "net", "ipconfig":
		return 31, true
	case "scsi":
		return 30, true
	case "virtio":
		return 15, true
	case "sata":
		return 5, true
	case "ide", "serial":
		return 3, true
	case "parallel":
		return 2, true
	case "hostpci", "usb":
		return 15, true
	case "numa":
		return 7, true
	case "virtiofs":
		return 9, true
	case "unused":
		return 255, true
	}
	return 0, false
}

// collapse turns "net12" into "net[n]" if the number is in range, and leaves other keys alone.
func collapse(key string) string {
	family, n, ok := SplitIndex(key)
	if !ok {
		return key
	}
	if limit, numbered := indexLimit(family); numbered && n <= limit {
		return family + "[n]"
	}
	return key
}

// SplitIndex takes "net0" apart into "net" and 0. ok is false without a number,
// and for a number with needless zeros in front.
func SplitIndex(key string) (family string, n int, ok bool) {
	family = strings.TrimRight(key, "0123456789")
	num := key[len(family):]
	if num == "" || len(num) > 3 || (len(num) > 1 && num[0] == '0') {
		return key, 0, false
	}
	for _, c := range num {
		n = 10*n + int(c-'0')
	}
	return family, n, true
}

// Known reports whether key is a key of a guest's file in Proxmox VE.
func Known(key string) bool {
	_, ok := keyOption(key)
	return ok
}
