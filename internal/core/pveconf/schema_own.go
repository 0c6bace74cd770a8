package pveconf

// ownOptions are the options of the keys for which the API's schema names a format without taking it
// apart; from the manual of Proxmox VE 9 (qm.conf). nil for other keys.
func ownOptions(key string) []option {
	switch key {
	case "boot":
		return []option{
			{name: "legacy", form: "boot-legacy", def: "cdn"},
			{name: "order"},
		}
	case "cpu":
		return cpuOptions()
	case "cicustom":
		return []option{
			{name: "meta", form: "pve-volume-id"},
			{name: "network", form: "pve-volume-id"},
			{name: "user", form: "pve-volume-id"},
			{name: "vendor", form: "pve-volume-id"},
		}
	case "hostpci[n]":
		return hostPCIOptions()
	case "ipconfig[n]":
		return []option{
			{name: "gw", form: "ipv4"},
			{name: "gw6", form: "ipv6"},
			{name: "ip", form: "ipv4-config"},
			{name: "ip6", form: "ipv6-config"},
		}
	case "rng0":
		return []option{
			{name: "source", enum: "/dev/urandom /dev/random /dev/hwrng", required: true},
			{name: "max_bytes", kind: kindInteger, low: "0", def: "1024"},
			{name: "period", kind: kindInteger, low: "0", def: "1000"},
		}
	case "smbios1":
		return smbiosOptions()
	case "startup":
		return []option{
			{name: "order", kind: kindInteger, low: "0"},
			{name: "up", kind: kindInteger, low: "0", unit: "seconds"},
			{name: "down", kind: kindInteger, low: "0", unit: "seconds"},
		}
	case "watchdog":
		return []option{
			{name: "model", enum: "i6300esb ib700", def: "i6300esb"},
			{name: "action", enum: "reset shutdown poweroff pause debug none"},
		}
	case "amd-sev":
		return []option{
			{name: "type", enum: "std es snp", required: true},
			{name: "allow-smt", kind: kindBoolean, def: "1"},
			{name: "kernel-hashes", kind: kindBoolean, def: "0"},
			{name: "no-debug", kind: kindBoolean, def: "0"},
			{name: "no-key-sharing", kind: kindBoolean, def: "0"},
		}
	case "intel-tdx":
		return []option{
			{name: "type", form: "word", required: true},
			{name: "attestation", kind: kindBoolean, def: "1"},
			{name: "vsock-cid", kind: kindInteger, low: "0"},
			{name: "vsock-port", kind: kindInteger, low: "0"},
		}
	}
	return nil
}

func cpuOptions() []option {
	return []option{
		{name: "cputype", form: "cpu-model"},
		{name: "flags", form: "cpu-flags"},
		{name: "guest-phys-bits", kind: kindInteger, low: "32", high: "64"},
		{name: "hidden", kind: kindBoolean, def: "0"},
		{name: "hv-vendor-id", form: "hv-vendor-id"},
		{name: "level", kind: kindInteger, low: "0", high: "4294967295"},
		{name: "phys-bits", form: "phys-bits"},
		{name: "reported-model", form: "cpu-model", def: "kvm64"},
	}
}

func hostPCIOptions() []option {
	return []option{
		{name: "host", form: "pci-addresses"},
		{name: "device-id", form: "pci-id"},
		{name: "driver", enum: "vfio keep", def: "vfio"},
		{name: "legacy-igd", kind: kindBoolean, def: "0"},
		{name: "mapping", form: "pve-configid"},
		{name: "mdev", form: "mdev"},
		{name: "pcie", kind: kindBoolean, def: "0"},
		{name: "rombar", kind: kindBoolean, def: "1"},
		{name: "romfile", form: "file-name"},
		{name: "sub-device-id", form: "pci-id"},
		{name: "sub-vendor-id", form: "pci-id"},
		{name: "vendor-id", form: "pci-id"},
		{name: "x-vga", kind: kindBoolean, def: "0"},
	}
}

func smbiosOptions() []option {
	return []option{
		{name: "uuid", form: "uuid"},
		{name: "manufacturer"},
		{name: "product"},
		{name: "version"},
		{name: "serial"},
		{name: "sku"},
		{name: "family"},
		{name: "base64", kind: kindBoolean, def: "0"},
	}
}
