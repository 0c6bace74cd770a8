package client

import (
	"context"
	"maps"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/api"
)

// propString joins pairs in the order of their keys.
func propString(v map[string]string) string {
	parts := make([]string, 0, len(v))
	for _, key := range slices.Sorted(maps.Keys(v)) {
		parts = append(parts, key+"="+v[key])
	}
	return strings.Join(parts, ",")
}

// FenceFile is ha/fence.cfg.
func (c *Client) FenceFile(ctx context.Context) (f api.HAFenceFile, err error) {
	return f, c.get(ctx, "/sauh/ha/fence", nil, &f)
}

// SetFenceFile replaces it; digest "" skips the check.
func (c *Client) SetFenceFile(ctx context.Context, text, digest string) error {
	v := values("digest", digest)
	v.Set("config", text)
	return c.put(ctx, "/sauh/ha/fence", v, nil)
}

// FenceMethods lists each node's methods and what they are worth.
func (c *Client) FenceMethods(ctx context.Context) (list []api.HAFenceMethod, err error) {
	return list, c.get(ctx, "/sauh/ha/fence/methods", nil, &list)
}

// SetFenceMethod changes a method, or makes it where typ is given and there is none; secret is its new password, "" leaves that.
func (c *Client) SetFenceMethod(ctx context.Context, typ, id string, e api.Edit, secret string) error {
	v := edited(e)
	if secret != "" {
		v["secret"] = []string{secret}
	}
	if typ != "" {
		v["type"] = []string{typ}
	}
	return c.put(ctx, "/sauh/ha/fence/methods/"+esc(id), v, nil)
}

// RemoveFenceMethod deletes a method.
func (c *Client) RemoveFenceMethod(ctx context.Context, id string) error {
	return c.del(ctx, "/sauh/ha/fence/methods/"+esc(id), nil, nil)
}

// SetFenceSecret writes a BMC's password; "" deletes it.
func (c *Client) SetFenceSecret(ctx context.Context, name, secret string) error {
	path := "/sauh/ha/fence/secrets/" + esc(name)
	if secret == "" {
		return c.del(ctx, path, nil, nil)
	}
	return c.put(ctx, path, values("secret", secret), nil)
}

// FenceTest tries a node's methods; with switching it is really switched off.
func (c *Client) FenceTest(ctx context.Context, node string, switching bool) (list []api.HAFenceMethod, err error) {
	return list, c.post(ctx, "/sauh/ha/fence-test/"+esc(node), values("switch", b01(switching)), &list)
}
