package agent

import (
	"bytes"
	"context"
	"errors"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// A configuration file may come from elsewhere, and not be readable. What it said before stays in force: the manager keeps the last content
// that could be read in a record beside it, so that a restart, or another node, knows it too.

// readablePrefix + a file's path: the last content of it that could be read.
const readablePrefix = "ha/readable/"

func readableKey(file string) string { return readablePrefix + file[len(model.ConfigPrefix):] }

// inForce is a file of the mirror as [mirror.Decode] reads it, or, if it cannot be read, what it said before. The error means that nobody knows.
func inForce[T any](s mirror.Snapshot, key string, parse func([]byte) (T, error)) (mirror.Record[T], error) {
	rec, err := mirror.Decode(s, key, parse)
	if err == nil {
		return rec, nil
	}
	last, lastErr := mirror.Decode(s, readableKey(key), parse)
	if lastErr != nil || last.Revision == 0 {
		return rec, err
	}
	return last, nil
}

// readInForce is the same by linearizable reads.
func readInForce[T any](ctx context.Context, st store.Store, key string, parse func([]byte) (T, error)) (T, error) {
	var none T
	file, err := read(ctx, st, key)
	if err != nil {
		return none, err
	}
	value, unreadable := parse(file.Value)
	if unreadable == nil {
		return value, nil
	}
	last, err := read(ctx, st, readableKey(key))
	if err != nil {
		return none, err
	}
	if value, err = parse(last.Value); err != nil || last.ModRevision == 0 {
		return none, unreadable
	}
	return value, nil
}

// judgedFiles are those by which HA decides, each with whether it can be read.
func judgedFiles() map[string]func(mirror.Snapshot) error {
	return map[string]func(mirror.Snapshot) error{
		haResourcesKey: readableBy(haResourcesKey, pveconf.ParseHAResources),
		storageCfgKey:  readableBy(storageCfgKey, pveconf.ParseStorages),
		haRulesKey:     readableBy(haRulesKey, pveconf.ParseHARules),
		haGroupsKey:    readableBy(haGroupsKey, pveconf.ParseHAGroups),
		datacenterKey:  func(s mirror.Snapshot) error { _, err := policyOf(s, datacenterKey); return err },
	}
}

func readableBy[T any](key string, parse func([]byte) (T, error)) func(mirror.Snapshot) error {
	return func(s mirror.Snapshot) error {
		_, err := mirror.Decode(s, key, parse)
		return err
	}
}

// keepReadable keeps the records of what can be read, while this node is the manager.
func (m *haManager) keepReadable(ctx context.Context) {
	changed, stop := m.mirror.Subscribe()
	defer stop()
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for ctx.Err() == nil {
		m.noteReadable(ctx)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-retry.C:
		}
	}
}

func (m *haManager) noteReadable(ctx context.Context) {
	s := m.mirror.Snapshot()
	manager, err := mirror.Get[model.Manager](s, model.ManagerKey)
	if err != nil || manager.Value.Node != m.node || !m.quorate() {
		return
	}
	for key, unreadable := range judgedFiles() {
		file, _ := s.Get(key)
		last, _ := s.Get(readableKey(key))
		if last.ModRevision != 0 && bytes.Equal(file.Value, last.Value) || unreadable(s) != nil {
			continue
		}
		_, err := m.st.Txn(ctx, store.Txn{
			If:   []store.Cond{{Key: key, Revision: file.ModRevision}, {Key: readableKey(key), Revision: last.ModRevision}},
			Then: []store.Op{store.Put(readableKey(key), file.Value)}, // empty where there is no file
		})
		if err != nil && !errors.Is(err, store.ErrConflict) {
			m.log.Info("what a file says is not kept yet", "file", key, "err", err)
		}
	}
}
