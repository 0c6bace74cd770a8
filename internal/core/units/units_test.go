package units_test

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
)

func TestSizesAreReadAsProxmoxVEWritesThem(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4G": 4 << 30, "512M": 512 << 20, "3K": 3072, "2T": 2 << 40, "0.5T": 512 << 30, "1.5K": 1536,
		"9007199254740993": 9007199254740993, // more than a float64 can tell apart
	} {
		if got, err := units.ParseBytes(text); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestWhatIsNoSizeIsInvalid(t *testing.T) {
	for _, text := range []string{"", "G", "-1", "+1", "1g", "1 G", "1GB", "0x10", "1e3", "Inf", "NaN", ".5G", "5.G", "1.2.3", "1_0", "9223372036854775808", "9000000T", "8388608.0T"} {
		if got, err := units.ParseBytes(text); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("ParseBytes(%q) = %d, %v", text, got, err)
		}
	}
}

func TestPrintedSizesReadBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Min(0).Draw(t, "n")
		if got, err := units.ParseBytes(units.FormatSize(n)); err != nil || got != n {
			t.Fatalf("%d is printed as %s and read as %d, %v", n, units.FormatSize(n), got, err)
		}
	})
}

func TestQuantitiesForPeople(t *testing.T) {
	for got, want := range map[string]string{
		units.FormatSize(4 << 30): "4G", units.FormatSize(1536 << 20): "1536M", units.FormatSize(0): "0",
		units.FormatBytes(1536): "1.5 KiB", units.FormatBytes(5 << 40): "5.0 TiB", units.FormatBytes(-2048): "-2.0 KiB", units.FormatBytes(7): "7 B",
		units.FormatPercent(0.125): "12.5 %", units.FormatPercent(1): "100.0 %",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
