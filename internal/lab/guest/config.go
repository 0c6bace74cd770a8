package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"regexp"
)

// ErrNoConfig means that the block holds no configuration: the image was never personalized.
var ErrNoConfig = errors.New("the disk holds no guest configuration")

// configMagic begins the block; the digit is the format's version.
const configMagic = "SAUHCFG1"

// configHeader is magic, length and CRC-32C of the JSON that follows.
const configHeader = len(configMagic) + 4 + 4

// Config is what distinguishes one probe guest from another.
type Config struct {
	IP       netip.Prefix `json:"ip"`               // address and length of its network, "10.10.1.100/24"
	Gateway  netip.Addr   `json:"gateway,omitzero"` // may be missing
	Hostname string       `json:"hostname"`         // a DNS label
	Quiet    bool         `json:"quiet,omitempty"`  // no prompt on the serial port
}

var hostname = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case !c.IP.IsValid() || !c.IP.Addr().Is4():
		return fmt.Errorf("address %q: use an IPv4 address with the length of its network, such as 10.10.1.100/24", c.IP)
	case c.Gateway.IsValid() && !c.IP.Contains(c.Gateway):
		return fmt.Errorf("gateway %s is not in the guest's network %s", c.Gateway, c.IP.Masked())
	case !hostname.MatchString(c.Hostname):
		return fmt.Errorf("host name %q: use lower-case letters, digits and '-', at most 63 characters", c.Hostname)
	}
	return nil
}

// EncodeConfig makes the block of ConfigSize bytes that belongs at ConfigOffset.
func EncodeConfig(c Config) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err != nil || configHeader+len(text) > ConfigSize {
		return nil, fmt.Errorf("encode configuration of %d bytes: %w", len(text), err)
	}
	block := make([]byte, ConfigSize)
	n := copy(block, configMagic)
	binary.LittleEndian.PutUint32(block[n:], uint32(len(text)))
	binary.LittleEndian.PutUint32(block[n+4:], checksum(text))
	copy(block[configHeader:], text)
	return block, nil
}

// DecodeConfig reads such a block. Errors: ErrNoConfig.
func DecodeConfig(block []byte) (Config, error) {
	var c Config
	if len(block) < configHeader || string(block[:len(configMagic)]) != configMagic {
		return c, ErrNoConfig
	}
	n := binary.LittleEndian.Uint32(block[len(configMagic):])
	if int(n) > len(block)-configHeader {
		return c, fmt.Errorf("configuration of %d bytes in a block of %d: %w", n, len(block), ErrNoConfig)
	}
	text := block[configHeader : configHeader+int(n)]
	if checksum(text) != binary.LittleEndian.Uint32(block[len(configMagic)+4:]) {
		return c, fmt.Errorf("wrong checksum: %w", ErrNoConfig)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("decode configuration: %w", err)
	}
	return c, c.Validate()
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
