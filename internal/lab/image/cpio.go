package image

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"

	"sauh.dev/sauh/internal/lab/guest"
)

// file is a name and what is in it.
type file struct {
	name string
	data []byte
}

// Modes of the initramfs's entries, as in stat(2).
const (
	modeDir     = 0o040755
	modeProgram = 0o100755
	modeFile    = 0o100644
	modeConsole = 0o020600
)

// initramfs packs the guest program, its modules, other programs and the console's device node,
// compressed: what the loader reads through the BIOS costs more than unpacking it does. Under emulation gzip
// and lz4 took 0.7 s of processor time less than no compression, and gzip needs no program.
func initramfs(init []byte, modules, programs []file) ([]byte, error) {
	var buf bytes.Buffer
	w := &cpioWriter{w: &buf}
	moduleDir := strings.TrimPrefix(guest.ModuleDir, "/")
	for _, dir := range []string{"dev", "proc", "sys", moduleDir} {
		w.add(dir, modeDir, 0, 0, nil)
	}
	w.add("dev/console", modeConsole, 5, 1, nil)
	for _, m := range modules {
		w.add(moduleDir+"/"+m.name, modeFile, 0, 0, m.data)
	}
	for _, p := range programs {
		w.add(p.name, modeProgram, 0, 0, p.data)
	}
	w.add("init", modeProgram, 0, 0, init)
	w.add("TRAILER!!!", 0, 0, 0, nil)
	if w.err != nil {
		return nil, fmt.Errorf("pack initramfs: %w", w.err)
	}
	return compress(buf.Bytes())
}

func compress(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(b)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("compress initramfs: %w", err)
	}
	return out.Bytes(), nil
}

// cpioWriter writes the "newc" format of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst. It keeps the first error.
type cpioWriter struct {
	w   io.Writer
	ino int
	n   int
	err error
}

func (c *cpioWriter) add(name string, mode, major, minor int, data []byte) {
	c.ino++
	nlink := 1
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, nlink, 0, len(data), 0, 0, major, minor, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n, c.err = c.n+n, err
}

// pad fills up to a multiple of four bytes.
func (c *cpioWriter) pad() { c.write(make([]byte, -c.n&3)) }
