package cli

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
	"sauh.dev/sauh/internal/storage"
)

func (m *Main) storageCommand() *cobra.Command {
	add := group("add", "Configure a storage for all nodes", "  sauh storage add dir nas --path /mnt/nas --shared", m.storageAddDir())
	// The flags of a type that is not there must not hide that it is not.
	add.FParseErrWhitelist.UnknownFlags = true
	add.Args = cobra.ArbitraryArgs
	add.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usageError(cmd, "there is no storage type '%s' in this version: mount it under the same path on every node, "+
			"and add that with 'sauh storage add dir NAME --path PATH --shared'", args[0])
	}
	return group("storage", "Configure storages and handle volumes", "  sauh storage list\n  sauh storage content nas",
		add, m.storageRemove(), m.storageList(), m.storageContent(), m.storageAlloc(), m.storageFree())
}

func (m *Main) storageAddDir() *cobra.Command {
	var path, content, late string
	var shared bool
	cmd := &cobra.Command{
		Use: "dir NAME", Short: "A directory of image files",
		Long: "A shared directory is one that every node sees under the same path. With --late-writes yes (the default of a\n" +
			"shared one) a node that is cut off is reset, because what its kernel was told to write may still arrive.",
		Example: "  sauh storage add dir nas --path /mnt/nas --shared --late-writes no", Args: takes("NAME"),
	}
	cmd.Flags().StringVar(&path, "path", "", "the directory (needed)")
	cmd.Flags().BoolVar(&shared, "shared", false, "every node sees the same directory")
	cmd.Flags().StringVar(&late, "late-writes", "", "yes or no: whether writes of a node that was cut off may still arrive")
	cmd.Flags().StringVar(&content, "content", "images", "what it may hold")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if path == "" {
			return usageError(cmd, "%s needs --path", cmd.CommandPath())
		}
		params := map[string]string{"type": "dir", "path": path, "content": content}
		if shared {
			params["shared"] = "1"
		}
		if late != "" {
			params["late-writes"] = late
		}
		if err := c.AddStorage(ctx, args[0], params); err != nil {
			return err
		}
		m.say("storage %s added", args[0])
		return nil
	})
	return cmd
}

func (m *Main) storageRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Forget a storage; its volumes stay where they are", Example: "  sauh storage remove nas", Args: takes("NAME"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveStorage(ctx, args[0]); err != nil {
				return err
			}
			m.say("storage %s removed", args[0])
			return nil
		}),
	}
}

func nodeFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("node", client.LocalNode, "the node to ask")
}

func (m *Main) storageList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the storages as a node sees them", Example: "  sauh storage list --node n2", Args: takes()}
	node, out := nodeFlag(cmd), m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.Storages(ctx, *node)
		if err != nil {
			return err
		}
		return out.print(list, func(w io.Writer) {
			rows := [][]string{{"STORAGE", "TYPE", "CONTENT", "SHARED", "LATE WRITES", "ACTIVE", "TOTAL", "USED", "AVAILABLE", "PATH"}}
			for _, s := range list {
				active := yesNo(s.Active)
				if s.Reason != "" {
					active += ": " + s.Reason
				}
				rows = append(rows, []string{
					s.Storage, s.Type, s.Content, yesNo(s.Shared), yesNo(s.LateWrites), active,
					units.FormatBytes(s.Total), units.FormatBytes(s.Used), units.FormatBytes(s.Available), s.Path,
				})
			}
			table(w, rows...)
		})
	})
	return cmd
}

func (m *Main) storageContent() *cobra.Command {
	cmd := &cobra.Command{Use: "content NAME", Short: "List a storage's volumes", Example: "  sauh storage content nas", Args: takes("NAME")}
	node, out := nodeFlag(cmd), m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		vols, err := c.Content(ctx, *node, args[0])
		if err != nil {
			return err
		}
		return out.print(vols, func(w io.Writer) {
			rows := [][]string{{"VOLUME", "GUEST", "FORMAT", "SIZE", "USED"}}
			for _, v := range vols {
				rows = append(rows, []string{v.ID, number(int(v.VMID)), string(v.Format), units.FormatBytes(v.Size), units.FormatBytes(v.Used)})
			}
			table(w, rows...)
		})
	})
	return cmd
}

func (m *Main) storageAlloc() *cobra.Command {
	var name, format string
	cmd := &cobra.Command{
		Use: "alloc STORAGE VMID SIZE", Short: "Make an empty volume for a guest and print its id; SIZE is 4G, 512M, …",
		Example: "  sauh storage alloc nas 100 4G --format qcow2",
		Args:    takes("STORAGE", "VMID", "SIZE"),
	}
	cmd.Flags().StringVar(&name, "name", "", "the volume's name (default: vm-VMID-disk-N)")
	cmd.Flags().StringVar(&format, "format", "", "raw or qcow2 (default: the storage's)")
	node := nodeFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		id, err := model.ParseVMID(args[1])
		if err != nil {
			return err
		}
		size, err := units.ParseBytes(args[2])
		if err != nil {
			return err
		}
		if strings.Trim(args[2], "0123456789.") == "" { // a number means GiB in nas:4, and bytes elsewhere
			return usageError(cmd, "the size %s has no unit: write %sG for GiB, or M, or T", args[2], args[2])
		}
		volid, err := c.AllocateVolume(ctx, *node, args[0], storage.Allocation{VMID: id, Name: name, Format: storage.Format(format), Size: size})
		if err != nil {
			return err
		}
		m.say("%s", volid)
		return nil
	})
	return cmd
}

func (m *Main) storageFree() *cobra.Command {
	cmd := &cobra.Command{
		Use: "free VOLUME", Short: "Delete a volume", Example: "  sauh storage free nas:100/vm-100-disk-1.qcow2", Args: takes("VOLUME"),
	}
	node := nodeFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		name, vol, ok := strings.Cut(args[0], ":")
		if !ok || name == "" || vol == "" {
			return usageError(cmd, "%q is not a volume: write STORAGE:NAME as 'sauh storage content STORAGE' prints it", args[0])
		}
		if err := c.DeleteVolume(ctx, *node, args[0]); err != nil {
			return err
		}
		m.say("volume %s deleted", args[0])
		return nil
	})
	return cmd
}
