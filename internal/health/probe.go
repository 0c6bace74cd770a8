package health

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	question = "probe"
	goodWord = "ok"
	badWord  = "error "
	// probeSize is what a probe writes: O_DIRECT wants whole blocks of the storage, and none has larger ones.
	probeSize = 4096
)

// Serve is a child's whole life: it carries out one probe for each question that it reads from in, until that ends.
func Serve(in io.Reader, out io.Writer, probe func() error) error {
	questions := bufio.NewScanner(in)
	for questions.Scan() {
		if questions.Text() != question {
			return fmt.Errorf("asked for %.40q: only %q is known", questions.Text(), question)
		}
		answer := goodWord
		if err := probe(); err != nil {
			answer = badWord + strconv.Quote(err.Error())
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return questions.Err()
}

// ProbeDir tries the storage in the directory dir: it writes a block into a file of its own and reads it back, both past
// the page cache, so that it is the storage that answers. name tells the file from those of all other nodes that have this storage, those
// of other clusters included. A full storage passes. It may hang for ever: call it in a child.
//
// dir must be there: an empty mount point that nothing is mounted on is the caller's to tell.
func ProbeDir(dir, name string) error {
	buf, err := unix.Mmap(-1, 0, 2*probeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // O_DIRECT wants it aligned
	if err != nil {
		return fmt.Errorf("allocate memory: %w", err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, ".sauh", "health", name)
	wrote, got := buf[:probeSize], buf[probeSize:]
	if _, err := rand.Read(wrote); err != nil {
		return fmt.Errorf("make a block to write: %w", err)
	}
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = transfer(path, os.O_WRONLY|os.O_CREATE|unix.O_DSYNC, wrote, unix.Pwrite)
	}
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return nil
	case err != nil:
		return err
	}
	if err := transfer(path, os.O_RDONLY, got, unix.Pread); err != nil {
		return err
	}
	if !bytes.Equal(wrote, got) {
		return &fs.PathError{Op: "read", Path: path, Err: errors.New("the storage gives back something else than was written")}
	}
	return nil
}

// transfer opens path past the page cache, where the file system can do that, and moves b.
func transfer(path string, flags int, b []byte, move func(fd int, p []byte, off int64) (int, error)) (err error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Harmless with O_DIRECT, and without it what makes a read go to the storage.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	n, err := move(int(f.Fd()), b, 0)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return &fs.PathError{Op: "probe", Path: path, Err: err}
	}
	return nil
}

// answered turns a child's line into the probe's result.
func answered(line string) error {
	if line == goodWord {
		return nil
	}
	text, ok := strings.CutPrefix(line, badWord)
	if text, err := strconv.Unquote(text); ok && err == nil {
		return errors.New(text)
	}
	return fmt.Errorf("the probe says %.80q, which is no answer", line)
}
