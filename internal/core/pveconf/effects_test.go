package pveconf

import (
	"slices"
	"strings"
	"testing"
)

// The table of effects has each key, or each option of it, exactly once, and nothing that does not exist.
func TestEveryKeyAndOptionHasOneEffect(t *testing.T) {
	count := map[string]int{}
	for _, r := range Effects() {
		if r.Options == "" {
			count[r.Key]++
		}
		for _, name := range strings.Fields(r.Options) {
			count[r.Key+"/"+name]++
		}
	}
	for _, key := range everyKey() {
		if key = collapse(key); key == "cdrom" { // ide2 by another name
			continue
		}
		if n := count[key]; n > 0 {
			if n > 1 {
				t.Errorf("%s has %d rows", key, n)
			}
			delete(count, key)
			continue
		}
		for _, o := range optionsOf(key) {
			if o.aliasOf != "" {
				continue
			}
			if n := count[key+"/"+o.name]; n != 1 {
				t.Errorf("%s=… of %s has %d rows", o.name, key, n)
			}
			delete(count, key+"/"+o.name)
		}
		if len(optionsOf(key)) == 0 {
			t.Errorf("%s has no row", key)
		}
	}
	for what := range count {
		t.Errorf("the table has %s, which does not exist", what)
	}
}

func TestNeutralValuesAreValid(t *testing.T) {
	for _, r := range Effects() {
		key := strings.ReplaceAll(r.Key, "[n]", "0")
		for _, name := range append(strings.Fields(r.Options), r.Options) {
			o, ok := keyOption(key)
			if r.Options != "" {
				all := optionsOf(key)
				i := slices.IndexFunc(all, func(p option) bool { return p.name == name })
				if i < 0 {
					continue
				}
				o, ok = all[i], true
			}
			for _, v := range strings.Fields(r.Neutral) {
				if err := o.check(key, v, v); !ok || err != nil {
					t.Errorf("%s %s: %v", r.Key, r.Options, err)
				}
			}
		}
	}
}

func TestAChangeWaitsForAStartWhereTheTableSaysSo(t *testing.T) {
	for key, want := range map[string]bool{
		"memory": true, "net0": true, "virtio3": true, "agent": true, "name": false, "onboot": false, "hostpci0": false, "frobnicate": false, "cdrom": false,
	} {
		if got := AtNextStart(key); got != want {
			t.Errorf("AtNextStart(%s) = %v", key, got)
		}
	}
}
