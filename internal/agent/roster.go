package agent

import (
	"sort"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/model"
)

// roster says who the members are, as the mirror has it.
type roster struct{ mirror *mirror.Mirror }

// nodes lists the members by number. What cannot be read is in the log and not in the list.
func (r roster) nodes() []model.Node {
	records, _ := mirror.List[model.Node](r.mirror.Snapshot(), model.NodePrefix)
	out := make([]model.Node, 0, len(records))
	for _, rec := range records {
		out = append(out, rec.Value)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

func (r roster) node(name string) (model.Node, error) {
	rec, err := mirror.Get[model.Node](r.mirror.Snapshot(), model.NodePrefix+name)
	if err != nil {
		return model.Node{}, err
	}
	if rec.Revision == 0 {
		var names []string
		for _, n := range r.nodes() {
			names = append(names, n.Name)
		}
		return model.Node{}, model.Errorf(model.ErrNotFound, "node '%s' does not exist: the nodes are %s", name, strings.Join(names, ", "))
	}
	return rec.Value, nil
}
