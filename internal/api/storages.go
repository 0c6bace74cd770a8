package api

import (
	"context"
	"errors"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

func (s *server) storageRoutes() []route {
	content := func(method string) string { return method + " /nodes/{node}/storage/{storage}/content" }
	return []route{
		here("GET /storage", s.storageConfig, text("type")),
		here("POST /storage", s.storageAdd, required(text("storage")), required(oneOf("type", "dir")), required(text("path")), flag("shared"),
			text("content"), oneOf("late-writes", "yes", "no")),
		here("DELETE /storage/{storage}", s.storageRemove),
		onNode("GET /nodes/{node}/storage", s.storageList, text("storage"), text("content"), flag("enabled"), flag("format")),
		onNode("GET /sauh/nodes/{node}/storage", func(ctx context.Context, _ *call) (any, error) {
			return orEmpty(s.b.Storages.ListStorages(ctx))
		}),
		onNode(content("GET"), s.content, text("content"), vmidParam()),
		onNode(content("POST"), s.allocate, text("filename"), required(text("size")), required(vmidParam()), oneOf("format", "raw", "qcow2")),
		onNode(content("DELETE")+"/{volume...}", s.free, integer("delay", 1, 30)),
	}
}

func noStorage(name string) error { return notFoundf("storage '%s' does not exist", name) }

func (s *server) storageConfig(ctx context.Context, c *call) (any, error) {
	list, err := s.b.Storages.ListStorages(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, si := range list {
		if c.args.has("type") && c.args["type"] != si.Type {
			continue
		}
		o := obj{"storage": si.Storage, "type": si.Type, "content": si.Content, "shared": b01(si.Shared)}
		if si.Path != "" {
			o["path"] = si.Path
		}
		out = append(out, o)
	}
	return out, nil
}

func (s *server) storageAdd(ctx context.Context, c *call) (any, error) {
	name := c.args["storage"]
	params := map[string]string{}
	for k, v := range c.args {
		if k != "storage" {
			params[k] = v
		}
	}
	err := s.b.Storages.AddStorage(ctx, name, params)
	if errors.Is(err, model.ErrExists) {
		return nil, existsf("create storage failed: storage ID '%s' already defined", name)
	}
	if err != nil {
		return nil, err
	}
	return obj{"storage": name, "type": c.args["type"]}, nil
}

func (s *server) storageRemove(ctx context.Context, c *call) (any, error) {
	name := c.args["storage"]
	err := s.b.Storages.RemoveStorage(ctx, name)
	if errors.Is(err, model.ErrNotFound) {
		return nil, noStorage(name)
	}
	return nil, err
}

// storageList shows what this node sees of each storage.
func (s *server) storageList(ctx context.Context, c *call) (any, error) {
	list, err := s.b.Storages.ListStorages(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, si := range list {
		if c.args.has("storage") && c.args["storage"] != si.Storage || c.args.has("content") && !hasContent(si.Content, c.args["content"]) {
			continue
		}
		o := obj{
			"storage": si.Storage, "type": si.Type, "content": si.Content, "shared": b01(si.Shared), "enabled": 1,
			"active": b01(si.Active), "total": si.Total, "used": si.Used, "avail": si.Available,
		}
		if si.Total > 0 {
			o["used_fraction"] = float64(si.Used) / float64(si.Total)
		}
		out = append(out, o)
	}
	return out, nil
}

func hasContent(have, want string) bool {
	for _, w := range strings.Split(want, ",") {
		for _, h := range strings.Split(have, ",") {
			if h == w {
				return true
			}
		}
	}
	return false
}

func (s *server) content(ctx context.Context, c *call) (any, error) {
	name := c.args["storage"]
	vols, err := s.b.Storages.Content(ctx, name)
	if err != nil {
		return nil, s.storageError(ctx, name, err)
	}
	out := []obj{}
	for _, v := range vols {
		if c.args.has("content") && !hasContent("images", c.args["content"]) || c.args.has("vmid") && v.VMID != c.args.vmid() {
			continue
		}
		out = append(out, obj{
			"volid": v.ID, "vmid": v.VMID, "format": string(v.Format), "size": v.Size, "used": v.Used, "content": "images",
		})
	}
	return out, nil
}

// storageError keeps the driver's sentence about a volume, and uses the known text when the storage itself is not there.
func (s *server) storageError(ctx context.Context, name string, err error) error {
	if !errors.Is(err, model.ErrNotFound) {
		return err
	}
	list, listErr := s.b.Storages.ListStorages(ctx)
	if listErr != nil {
		return err
	}
	for _, si := range list {
		if si.Storage == name {
			return err
		}
	}
	return noStorage(name)
}

// allocate answers with the volume's id at once, not with a task: so does Proxmox VE.
func (s *server) allocate(ctx context.Context, c *call) (any, error) {
	size, err := parseSize(c.args["size"])
	if err != nil {
		return nil, err
	}
	name := c.args["storage"]
	v, err := s.b.Storages.AllocateVolume(ctx, name, storage.Allocation{
		VMID: c.args.vmid(), Name: c.args["filename"], Format: storage.Format(c.args["format"]), Size: size,
	})
	if err != nil {
		return nil, s.storageError(ctx, name, err)
	}
	return v.ID, nil
}

func (s *server) free(ctx context.Context, c *call) (any, error) {
	name, volume := c.args["storage"], c.args["volume"]
	store, _, full := strings.Cut(volume, ":")
	if !full {
		volume = name + ":" + volume
	} else if store != name {
		return nil, invalidParam("volume", "volume '%s' is not on storage '%s'", volume, name)
	}
	if err := s.b.Storages.DeleteVolume(ctx, volume); err != nil {
		return nil, s.storageError(ctx, name, err)
	}
	return nil, nil
}
