package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Reset restarts the machine at once: no process is asked, nothing is synced. In a
// pid namespace it ends the namespace's init. It returns only with an error.
//
// It is reboot(2) and not /proc/sysrq-trigger, because the latter knows no
// namespaces: from inside a container it would reset the host.
func Reset() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reset the machine: %w", err)
	}
	return nil
}

// EndMachine syncs the disks and restarts the machine, or switches it off, without asking any process: for a machine
// without a service manager that would. In a pid namespace it ends the namespace's init. It returns only with an error.
func EndMachine(reboot bool) error {
	command := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		command = unix.LINUX_REBOOT_CMD_RESTART
	}
	unix.Sync()
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("end the machine: %w", err)
	}
	return nil
}
