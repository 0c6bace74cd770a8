package api

import (
	"context"
	"net/http"
	"strings"
)

// call is one request after its parameters were checked.
type call struct {
	args args
	node string // this node's name, as answers and error texts print it
}

// route is one method of one path.
type route struct {
	method   string
	segments []string // "{name}" matches one segment, "{name...}" the rest
	onNode   bool     // {node} says where the request is carried out
	always   bool     // also while nothing may be changed
	params   spec
	do       func(ctx context.Context, c *call) (any, error)
	// stream, instead of do, answers by itself; an error means that nothing was written.
	stream func(w http.ResponseWriter, r *http.Request, c *call) error
}

// splitPath cuts a path at its slashes; empty segments do not count.
func splitPath(p string) []string {
	return strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
}

func joinPath(path []string) string { return strings.Join(path, "/") }

// match finds the route of a path. Literal segments win because the table lists
// them before the variable ones.
func (s *server) match(method string, path []string) (*route, map[string]string) {
	for i := range s.routes {
		rt := &s.routes[i]
		if rt.method != method {
			continue
		}
		if vars, ok := matchSegments(rt.segments, path); ok {
			return rt, vars
		}
	}
	return nil, nil
}

func matchSegments(segments, path []string) (map[string]string, bool) {
	vars := map[string]string{}
	for i, seg := range segments {
		if i >= len(path) {
			return nil, false
		}
		name, isVar := strings.CutPrefix(strings.TrimSuffix(seg, "}"), "{")
		if rest, greedy := strings.CutSuffix(name, "..."); isVar && greedy {
			vars[rest] = joinPath(path[i:])
			return vars, true
		}
		if !isVar && seg != path[i] {
			return nil, false
		}
		if isVar {
			vars[name] = path[i]
		}
	}
	return vars, len(path) == len(segments)
}

type handler = func(ctx context.Context, c *call) (any, error)

// here is a route that every node answers for itself or for the whole cluster.
func here(pattern string, do handler, params ...param) route {
	method, path, _ := strings.Cut(pattern, " ")
	rt := route{method: method, segments: splitPath(path), do: do, params: spec{params: params}}
	rt.params.params = append(rt.params.params, pathParams(rt.segments)...)
	return rt
}

// onNode is a route that the node named in the path answers.
func onNode(pattern string, do handler, params ...param) route {
	rt := here(pattern, do, params...)
	rt.onNode = true
	return rt
}

// always is a route that a node serves also while nothing may be changed through it.
func always(rt route) route {
	rt.always = true
	return rt
}

// withGuestKeys also admits every key of a guest's configuration.
func withGuestKeys(rt route) route {
	rt.params.guestKeys = true
	return rt
}

func pathParams(segments []string) []param {
	var out []param
	for _, seg := range segments {
		name, isVar := strings.CutPrefix(strings.TrimSuffix(seg, "}"), "{")
		if !isVar {
			continue
		}
		switch name = strings.TrimSuffix(name, "..."); name {
		case "vmid":
			out = append(out, required(vmidParam()))
		default:
			out = append(out, required(text(name)))
		}
	}
	return out
}

// table lists every route. What Sauh has beyond Proxmox VE stands under /sauh.
func (s *server) table() []route {
	all := append(s.clusterRoutes(), s.nodeRoutes()...)
	all = append(all, s.taskRoutes()...)
	for _, role := range [][]route{s.guestRoutes(), s.storageRoutes(), s.haRoutes()} {
		for _, rt := range role {
			all = append(all, s.ofMember(rt))
		}
	}
	return all
}

// ofMember is a route that only a member can answer; elsewhere its answer is why not.
func (s *server) ofMember(rt route) route {
	if s.b.Absent != nil {
		rt.do, rt.stream = func(context.Context, *call) (any, error) { return nil, s.b.Absent() }, nil
	}
	return rt
}
