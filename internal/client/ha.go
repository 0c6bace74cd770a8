package client

import (
	"context"

	"sauh.dev/sauh/internal/api"
)

// HAResources lists what is protected.
func (c *Client) HAResources(ctx context.Context) (list []api.HAResource, err error) {
	return list, c.get(ctx, "/cluster/ha/resources", nil, &list)
}

// HAAdd protects a guest.
func (c *Client) HAAdd(ctx context.Context, r api.HAResource) error {
	return c.post(ctx, "/cluster/ha/resources", values("sid", r.SID, "state", r.State, "comment", r.Comment), nil)
}

// HASet changes the requested state ("" leaves it) and the comment (nil leaves it).
func (c *Client) HASet(ctx context.Context, sid, state string, comment *string) error {
	v := values("state", state)
	if comment != nil {
		v.Set("comment", *comment)
	}
	return c.put(ctx, "/cluster/ha/resources/"+esc(sid), v, nil)
}

// HARemove takes a guest out of high availability; it goes on running.
func (c *Client) HARemove(ctx context.Context, sid string) error {
	return c.del(ctx, "/cluster/ha/resources/"+esc(sid), nil, nil)
}

// HAStatus is the view of the manager.
func (c *Client) HAStatus(ctx context.Context) (st api.HAStatus, err error) {
	return st, c.get(ctx, "/sauh/ha/status", nil, &st)
}
