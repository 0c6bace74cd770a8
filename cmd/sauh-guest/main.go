// Command sauh-guest is the init of the laboratory's probe guests. It does
// nothing outside of a virtual machine; see internal/lab/guest.
package main

import (
	"context"
	"fmt"
	"os"

	"sauh.dev/sauh/internal/lab/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "sauh-guest is the init of a probe guest and does nothing here: build an image with it by `sauh lab image build`")
		os.Exit(1)
	}
	if err := guest.Run(context.Background()); err != nil {
		guest.Panic(err)
	}
	guest.PowerOff()
}
