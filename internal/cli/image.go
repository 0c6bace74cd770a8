package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/lab/image"
)

// ImageCommand is `sauh lab image`: it builds the probe guest's disk image.
func ImageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build the disk image of the laboratory's probe guest"}
	cmd.AddCommand(imageBuildCommand())
	return cmd
}

func imageBuildCommand() *cobra.Command {
	var o image.Options
	var out, ip, gateway, hostname string
	cmd := &cobra.Command{
		Use:   "build --out FILE",
		Short: "Build a raw disk image that boots the probe guest",
		Long: "Build a raw disk image that boots Debian's cloud kernel with the probe guest as its init.\n" +
			"With --ip the image gets that address; without it, it does not boot until it was given one.",
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usageError(cmd, "%s needs --out FILE", cmd.CommandPath())
			}
			if _, err := os.Lstat(out); err == nil {
				return fmt.Errorf("%s exists already: delete it, or write another --out", out)
			}
			config, err := imageConfig(ip, gateway, hostname)
			if err != nil {
				return err
			}
			if o.Guest == "" {
				if o.Guest, err = besideProgram("sauh-guest"); err != nil {
					return err
				}
			}
			built, err := image.Build(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := image.Copy(out, built); err != nil {
				return err
			}
			if config != nil {
				if err := image.Personalize(out, *config); err != nil {
					return errors.Join(err, os.Remove(out))
				}
			}
			fmt.Fprintln(cmd.OutOrStdout(), out)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file to write; it must not exist (needed)")
	f.StringVar(&o.Guest, "guest", "", "the guest program (default: sauh-guest beside this program)")
	f.StringVar(&o.CacheDir, "cache", image.DefaultCacheDir, "directory that keeps kernels and images")
	f.StringVar(&o.KernelPackage, "kernel", "", "Debian kernel package (default: what linux-image-cloud-amd64 stands for)")
	f.StringVar(&ip, "ip", "", "the guest's address with the length of its network, 10.10.1.100/24")
	f.StringVar(&gateway, "gateway", "", "the guest's gateway")
	f.StringVar(&hostname, "hostname", "probe", "the guest's host name")
	return cmd
}

// imageConfig reads the flags; without an address there is nothing to write.
func imageConfig(ip, gateway, hostname string) (*image.Config, error) {
	if ip == "" {
		return nil, nil
	}
	c := image.Config{Hostname: hostname}
	var err error
	if c.IP, err = netip.ParsePrefix(ip); err != nil {
		return nil, fmt.Errorf("--ip %s: use an address with the length of its network, such as 10.10.1.100/24", ip)
	}
	if gateway != "" {
		if c.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return nil, fmt.Errorf("--gateway %s: use an address, such as 10.10.1.1", gateway)
		}
	}
	return &c, c.Validate()
}

// besideProgram returns the path of a program in the directory of this one.
func besideProgram(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program's directory: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not there: build it with `CGO_ENABLED=0 go build ./cmd/%s`, or say where it is", path, name)
	}
	return path, nil
}
