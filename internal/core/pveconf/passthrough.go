package pveconf

import "strings"

// USB is a USB device of the node, or of a person at the console: usb[n].
type USB struct {
	Key string
	// VendorID and ProductID name a device, four hexadecimal digits each; Port names a port, "1-1.4"; SPICE is a device
	// at the console; Mapping is a name that stands for one on each node. Only one of them is set.
	VendorID, ProductID, Port, Mapping string
	SPICE                              bool
	USB3                               bool
}

// HostPCI is a PCI device of the node: hostpci[n].
type HostPCI struct {
	Key string
	// Addresses are those on this node; or Mapping is a name that stands for them on each node.
	Addresses []string
	Mapping   string
	Driver    string // "vfio" or "keep"
	MDev      string // type of a mediated device, "" for the device itself
	PCIe      bool   // as a PCI Express device, which needs q35
	NoROMBar  bool
	ROMFile   string // "" for the device's own
	XVGA      bool   // it is the guest's display
	LegacyIGD bool
	// Ids that the guest sees, "0x…"; "" for the device's own.
	VendorID, DeviceID, SubVendorID, SubDeviceID string
}

// VirtioFS is a directory of the node that the guest can mount: virtiofs[n].
type VirtioFS struct {
	Key                               string
	DirID                             string // name of the mapping
	Cache                             string // "auto", "always", "metadata", "never"
	DirectIO, ExposeACL, ExposeXAttrs bool
}

// IVSHMem is memory that the guest shares with a process of the node.
type IVSHMem struct {
	SizeMiB int64
	Name    string // below /dev/shm; "" stands for the guest's number
}

// ParseUSB reads the value of usb[n].
func ParseUSB(key, value string) (USB, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return USB{}, err
	}
	u := USB{Key: key, Mapping: os.text("mapping"), USB3: os.flag("usb3")}
	host := os.text("host")
	vendor, product, isID := strings.Cut(host, ":")
	switch {
	case strings.EqualFold(host, "spice"):
		u.SPICE = true
	case isID:
		u.VendorID, u.ProductID = strings.TrimPrefix(vendor, "0x"), strings.TrimPrefix(product, "0x")
	default:
		u.Port = host
	}
	return u, nil
}

// ParseHostPCI reads the value of hostpci[n].
func ParseHostPCI(key, value string) (HostPCI, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return HostPCI{}, err
	}
	return HostPCI{
		Key: key, Addresses: os.list("host"), Mapping: os.text("mapping"), Driver: os.text("driver"), MDev: os.text("mdev"),
		PCIe: os.flag("pcie"), NoROMBar: os.off("rombar"), ROMFile: os.text("romfile"), XVGA: os.flag("x-vga"), LegacyIGD: os.flag("legacy-igd"),
		VendorID: os.text("vendor-id"), DeviceID: os.text("device-id"), SubVendorID: os.text("sub-vendor-id"), SubDeviceID: os.text("sub-device-id"),
	}, nil
}

// ParseVirtioFS reads the value of virtiofs[n].
func ParseVirtioFS(key, value string) (VirtioFS, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return VirtioFS{}, err
	}
	return VirtioFS{key, os.text("dirid"), os.text("cache"), os.flag("direct-io"), os.flag("expose-acl"), os.flag("expose-xattr")}, nil
}

// ParseIVSHMem reads the value of ivshmem.
func ParseIVSHMem(value string) (IVSHMem, error) {
	os, err := readChecked("ivshmem", value)
	if err != nil {
		return IVSHMem{}, err
	}
	return IVSHMem{os.integer("size"), os.text("name")}, nil
}
