package store

import (
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Validate checks what every implementation must refuse: a key that is written
// without being compared, an empty key, a key named twice, and keys under
// model.AppliedPrefix, which belong to the store itself. Errors are model.ErrInvalid.
func (t Txn) Validate() error {
	compared := make(map[string]bool, len(t.If))
	for _, c := range t.If {
		if err := validateKey(c.Key); err != nil {
			return err
		}
		if compared[c.Key] {
			return model.Invalidf("txn", "key %q is compared twice", c.Key)
		}
		compared[c.Key] = true
	}
	written := make(map[string]bool, len(t.Then))
	for _, op := range t.Then {
		if !compared[op.Key] {
			return model.Invalidf("txn", "key %q is written without being compared", op.Key)
		}
		if written[op.Key] {
			return model.Invalidf("txn", "key %q is written twice", op.Key)
		}
		written[op.Key] = true
	}
	return nil
}

func validateKey(key string) error {
	switch {
	case key == "":
		return model.Invalidf("txn", "a key is empty")
	case strings.HasPrefix(key, model.AppliedPrefix):
		return model.Invalidf("txn", "key %q: keys under %q belong to the store itself", key, model.AppliedPrefix)
	}
	return nil
}
