package sim

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// scenarioKeys are those that an entry may have: what is read, and what the reference's own tool notes beside it.
func scenarioKeys() map[string][]string {
	return map[string][]string{
		"":       strings.Fields("name group inputs expect outcome log_lines"),
		"inputs": strings.Fields("cmdlist hardware_status service_config rules_config groups datacenter.cfg static_service_stats dynamic_service_stats manager_status"),
		"expect": strings.Fields("class max_moves must_be_dead_before_recovery must_not_be_fenced reference_artefact_double_run timing_sensitive_commands"),
	}
}

// checkScenario refuses an entry that would agree with anything: one with a key that nobody reads, which may be a slip of the pen, and one
// without nodes, or without both guests and nodes that must stay. An *model.InvalidError.
func checkScenario(sc *Scenario, text json.RawMessage) error {
	refuse := func(format string, args ...any) error {
		return model.Invalidf("scenario "+sc.Name, format, args...)
	}
	if sc.Name == "" {
		return model.Invalidf("scenario", "one has no name")
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(text, &parts); err != nil {
		return err
	}
	for part, known := range scenarioKeys() {
		keys := parts
		if part != "" {
			keys = map[string]json.RawMessage{}
			if len(parts[part]) > 0 {
				if err := json.Unmarshal(parts[part], &keys); err != nil {
					return err
				}
			}
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			if !slices.Contains(known, k) {
				return refuse("there is no key %q: there are %s", strings.TrimPrefix(part+"."+k, "."), strings.Join(known, ", "))
			}
		}
	}
	switch {
	case len(sc.Inputs.Nodes) == 0:
		return refuse("it has nothing to check: inputs.hardware_status must name the nodes")
	case len(sc.Inputs.Services)+len(sc.Outcome.Final)+len(sc.Expect.NotFenced) == 0:
		return refuse("it has nothing to check: give it guests in inputs.service_config, or nodes in expect.must_not_be_fenced")
	}
	return nil
}

// parseScenarios reads entries and checks each.
func parseScenarios(texts []json.RawMessage) ([]Scenario, error) {
	out := make([]Scenario, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal(text, &out[i]); err != nil {
			return nil, fmt.Errorf("parse scenario %d: %w", i+1, err)
		}
		if err := checkScenario(&out[i], text); err != nil {
			return nil, err
		}
	}
	return out, nil
}
