package pveconf

// Disk is a disk of a guest: virtio[n], scsi[n], sata[n] or ide[n].
type Disk struct {
	Key string // "virtio0"
	// Volume is "<storage>:<name>", an absolute path, "none" for a drive without a medium, or "cdrom" for the node's own.
	Volume string
	// Format is "raw", "qcow2" or "" if the line does not say.
	Format string
	Size   int64 // bytes, 0 if the line does not say
	// Cache is Proxmox VE's cache mode, "" for none.
	Cache string
	// AIO is "native", "threads", "io_uring", or "" if the line does not say.
	AIO      string
	Discard  bool
	ReadOnly bool
	CDROM    bool
	// SSD shows the guest a disk that does not turn.
	SSD      bool
	IOThread bool
	// NoDetectZeroes writes zeroes as they come.
	NoDetectZeroes bool
	// Serial, Model, Vendor and Product are what the drive says of itself, decoded.
	Serial, Model, Vendor, Product string
	WWN                            string // "0x…"
	Queues                         int    // of scsi[n], 0 leaves it to QEMU
	SCSIBlock                      bool   // pass a host's block device through
	Shared                         bool   // every node has the volume, whatever its storage says
	Snapshot                       bool   // forget what is written when the guest ends
	NoBackup, NoReplicate          bool
	// WError and RError are what happens on an I/O error, "" leaves it to the driver.
	WError, RError string
	Limits         Limits
	// ImportFrom is the volume or file that a new disk is copied from.
	ImportFrom string
	Props      Props
}

// Limits are the speeds that a disk is held to: in all, of reads, of writes.
type Limits struct {
	Bytes, ReadBytes, WriteBytes Limit
	IOPS, ReadIOPS, WriteIOPS    Limit
}

// Limit is one of them. Its zero value is no limit.
type Limit struct {
	PerSecond    int64
	Burst        int64 // per second, while it lasts; 0 is none
	BurstSeconds int64 // how long, 0 leaves it to QEMU
}

// EFIDisk is the disk of the firmware's variables: efidisk0.
type EFIDisk struct {
	Volume, Format  string
	Size            int64  // bytes, 0 if the line does not say
	Type            string // "2m" or "4m"
	PreEnrolledKeys bool
	MSCert          string // of which year Microsoft's certificates are: "2011", "2023", "2023w", "2023k"
	ImportFrom      string
	Props           Props
}

// TPMState is the disk of a TPM: tpmstate0.
type TPMState struct {
	Volume, Format string
	Size           int64  // bytes, 0 if the line does not say
	Version        string // "v1.2" or "v2.0"
	ImportFrom     string
	Props          Props
}

// DiskFormat is the format of a disk's property string.
func DiskFormat() Format { return formatOf("scsi0") }

// ParseDisk reads the value of virtio[n], scsi[n], sata[n] or ide[n]; each bus has options of its own.
func ParseDisk(key, value string) (Disk, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return Disk{}, err
	}
	return Disk{
		Key: key, Volume: os.text("file"), Format: os.text("format"), Size: os.size(),
		Cache: os.text("cache"), AIO: os.text("aio"),
		Discard: os.text("discard") == "on", ReadOnly: os.flag("ro"), CDROM: os.text("media") == "cdrom",
		SSD: os.flag("ssd"), IOThread: os.flag("iothread"), NoDetectZeroes: os.off("detect_zeroes"),
		Serial: decodeText(os.text("serial")), Model: decodeText(os.text("model")),
		Vendor: os.text("vendor"), Product: os.text("product"), WWN: os.text("wwn"),
		Queues: int(os.integer("queues")), SCSIBlock: os.flag("scsiblock"),
		Shared: os.flag("shared"), Snapshot: os.flag("snapshot"),
		NoBackup: os.off("backup"), NoReplicate: os.off("replicate"),
		WError: os.text("werror"), RError: os.text("rerror"), Limits: os.limits(),
		ImportFrom: os.text("import-from"), Props: os.Props,
	}, nil
}

// ParseEFIDisk reads the value of efidisk0.
func ParseEFIDisk(value string) (EFIDisk, error) {
	os, err := readChecked("efidisk0", value)
	if err != nil {
		return EFIDisk{}, err
	}
	return EFIDisk{
		Volume: os.text("file"), Format: os.text("format"), Size: os.size(), Type: os.text("efitype"),
		PreEnrolledKeys: os.flag("pre-enrolled-keys"), MSCert: os.text("ms-cert"), ImportFrom: os.text("import-from"), Props: os.Props,
	}, nil
}

// ParseTPMState reads the value of tpmstate0.
func ParseTPMState(value string) (TPMState, error) {
	os, err := readChecked("tpmstate0", value)
	if err != nil {
		return TPMState{}, err
	}
	return TPMState{
		Volume: os.text("file"), Format: os.text("format"), Size: os.size(), Version: os.text("version"),
		ImportFrom: os.text("import-from"), Props: os.Props,
	}, nil
}

// size is the size in bytes, 0 if the value does not say.
func (os options) size() int64 {
	n, _ := parseSize("", os.text("size"))
	return n
}

func (os options) limits() Limits {
	return Limits{
		Bytes: os.byteLimit(""), ReadBytes: os.byteLimit("_rd"), WriteBytes: os.byteLimit("_wr"),
		IOPS: os.ioLimit(""), ReadIOPS: os.ioLimit("_rd"), WriteIOPS: os.ioLimit("_wr"),
	}
}

// byteLimit reads mbps, in units of 1024 KiB, or bps.
func (os options) byteLimit(kind string) Limit {
	l := Limit{PerSecond: os.integer("bps" + kind), BurstSeconds: os.integer("bps" + kind + "_max_length")}
	if mb := os.number("mbps" + kind); mb > 0 {
		l.PerSecond = int64(mb * (1 << 20))
	}
	l.Burst = int64(os.number("mbps"+kind+"_max") * (1 << 20))
	return l
}

func (os options) ioLimit(kind string) Limit {
	return Limit{
		PerSecond: os.integer("iops" + kind), Burst: os.integer("iops" + kind + "_max"), BurstSeconds: os.integer("iops" + kind + "_max_length"),
	}
}
