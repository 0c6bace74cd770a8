package client

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/storage"
)

// Storages lists the storages as a node sees them.
func (c *Client) Storages(ctx context.Context, node string) (list []api.StorageInfo, err error) {
	return list, c.get(ctx, "/sauh/nodes/"+esc(node)+"/storage", nil, &list)
}

// AddStorage configures a storage for all nodes; params are the keys of storage.cfg, type among them.
func (c *Client) AddStorage(ctx context.Context, name string, params map[string]string) error {
	v := url.Values{"storage": {name}}
	for k, val := range params {
		v.Set(k, val)
	}
	return c.post(ctx, "/storage", v, nil)
}

// RemoveStorage forgets a storage; its volumes stay where they are.
func (c *Client) RemoveStorage(ctx context.Context, name string) error {
	return c.del(ctx, "/storage/"+esc(name), nil, nil)
}

func contentPath(node, name string) string {
	return "/nodes/" + esc(node) + "/storage/" + esc(name) + "/content"
}

// Content lists the volumes of a storage.
func (c *Client) Content(ctx context.Context, node, name string) (list []storage.Volume, err error) {
	return list, c.get(ctx, contentPath(node, name), nil, &list)
}

// AllocateVolume makes a volume of a whole number of KiB (a.Size is rounded up) and returns its id.
func (c *Client) AllocateVolume(ctx context.Context, node, name string, a storage.Allocation) (volid string, err error) {
	kib := strconv.FormatInt((a.Size+1023)/1024, 10)
	v := values("vmid", a.VMID.String(), "filename", a.Name, "format", string(a.Format), "size", kib)
	return volid, c.post(ctx, contentPath(node, name), v, &volid)
}

// DeleteVolume deletes a volume, "<storage>:<name>".
func (c *Client) DeleteVolume(ctx context.Context, node, volid string) error {
	name, _, _ := strings.Cut(volid, ":")
	return c.del(ctx, contentPath(node, name)+"/"+esc(volid), nil, nil)
}
