package lab

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Internal runs the commands behind `sauh lab internal`, which the room starts
// itself: room DIR, init, exec DIR NODE ARGV…, chassis DIR NODE WORDS…. It returns the exit status.
// A test binary that builds rooms must call it from TestMain when its arguments
// start with "lab internal".
func Internal(args []string) int {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch {
	case command == "room" && len(args) == 2:
		ready := inherited(3, "ready")
		if err := runSupervisor(args[1], ready); err != nil {
			return report(ready, err)
		}
		return 0
	case command == "init" && len(args) == 1:
		ready := inherited(4, "ready")
		return report(ready, runInit(inherited(3, "spec"), ready))
	case command == "exec" && len(args) >= 3:
		code, err := runIn(context.Background(), args[1], args[2], args[3:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "sauh lab exec:", err)
			return 1
		}
		return code
	case command == "chassis" && len(args) >= 3:
		answer, err := runChassis(context.Background(), args[1], args[2], args[3:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "sauh lab: chassis:", err)
			return 1
		}
		fmt.Print(answer)
		return 0
	}
	fmt.Fprintln(os.Stderr, "sauh lab internal: these commands are for the machine room itself; see `sauh lab --help`")
	return 1
}

// inherited takes over a file that this process got and its children shall not.
func inherited(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// report tells whoever waits on ready, and the log, what went wrong.
func report(ready *os.File, err error) int {
	fmt.Fprintln(os.Stderr, "sauh lab:", err)
	_, _ = ready.WriteString(err.Error())
	return 1
}
