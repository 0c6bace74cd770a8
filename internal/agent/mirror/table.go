package mirror

import (
	"iter"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"sauh.dev/sauh/internal/store"
)

// chunk is how many entries stand together. A change copies one chunk and the list of them: of 60,000 keys
// that is about 500 pointers.
const chunk = 256

// entry is one key at one revision, and what was made of its value.
type entry struct {
	kv      store.KV
	decoded atomic.Pointer[decoded]
}

type decoded struct {
	value any
	err   error
}

// table is an immutable list of entries sorted by key, in chunks none of which is empty. Changes return another
// table, which shares all chunks but one. The zero value is empty.
type table struct{ chunks [][]*entry }

// tableOf makes a table of a sorted list.
func tableOf(kvs []store.KV) table {
	all := make([]*entry, len(kvs))
	for i, kv := range kvs {
		all[i] = &entry{kv: kv}
	}
	return table{slices.Collect(slices.Chunk(all, chunk))}
}

// find says in which chunk a key stands or belongs, and where there.
func (t table) find(key string) (c, i int, found bool) {
	// The last chunk that does not begin behind the key.
	c = max(0, sort.Search(len(t.chunks), func(n int) bool { return t.chunks[n][0].kv.Key > key })-1)
	if len(t.chunks) == 0 {
		return 0, 0, false
	}
	i, found = slices.BinarySearchFunc(t.chunks[c], key, func(e *entry, key string) int { return strings.Compare(e.kv.Key, key) })
	return c, i, found
}

func (t table) get(key string) *entry {
	if c, i, ok := t.find(key); ok {
		return t.chunks[c][i]
	}
	return nil
}

func (t table) with(e *entry) table {
	c, i, found := t.find(e.kv.Key)
	if len(t.chunks) == 0 {
		return table{[][]*entry{{e}}}
	}
	grown := make([]*entry, 0, len(t.chunks[c])+1)
	grown = append(append(grown, t.chunks[c][:i]...), e)
	if found {
		i++
	}
	grown = append(grown, t.chunks[c][i:]...)
	if len(grown) <= 2*chunk {
		return t.replaced(c, grown)
	}
	return t.replaced(c, grown[:chunk:chunk], grown[chunk:])
}

func (t table) without(key string) table {
	c, i, found := t.find(key)
	if !found {
		return t
	}
	shrunk := slices.Concat(t.chunks[c][:i], t.chunks[c][i+1:])
	if len(shrunk) == 0 {
		return t.replaced(c)
	}
	return t.replaced(c, shrunk)
}

// replaced has others in the place of chunk c.
func (t table) replaced(c int, by ...[]*entry) table {
	return table{slices.Concat(t.chunks[:c], by, t.chunks[c+1:])}
}

// from yields the entries whose key begins with prefix, in order.
func (t table) from(prefix string) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		c, i, _ := t.find(prefix)
		for ; c < len(t.chunks); c, i = c+1, 0 {
			for _, e := range t.chunks[c][min(i, len(t.chunks[c])):] {
				if !strings.HasPrefix(e.kv.Key, prefix) {
					return
				}
				if !yield(e) {
					return
				}
			}
		}
	}
}
