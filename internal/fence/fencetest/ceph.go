package fencetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sauh.dev/sauh/internal/sys"
)

// Ceph is a fake cluster: programs ceph and rbd that keep a blocklist in a file and show the lockers and watchers that a
// test wrote. Their answers have the form of Ceph 16.2.
type Ceph struct {
	dir string
	t   *testing.T
}

// NewCeph makes a fake cluster without images.
func NewCeph(t *testing.T) *Ceph {
	t.Helper()
	c := &Ceph{dir: t.TempDir(), t: t}
	c.write("ceph", fmt.Sprintf(cephScript, c.dir))
	c.write("rbd", fmt.Sprintf(rbdScript, c.dir))
	c.write("blocklist", "")
	c.write("calls", "")
	return c
}

// cephScript understands osd blocklist add|rm|ls. A file hang, fail or forget beside it is a fault; forget takes
// an entry and does not list it.
const cephScript = `#!/bin/sh
cd '%s' || exit 1
echo "ceph $*" >>calls
[ -e hang ] && exec sleep 1000
[ -e fail ] && { echo "Error EACCES: access denied" >&2; exit 13; }
while [ $# -gt 0 ] && [ "$1" != osd ]; do shift; done
case "$3" in
add)
	[ -e forget ] && exit 0
	case "$4" in */*) a=$4 ;; *) a=$4:0/0 ;; esac
	echo "$a $(date -u -d "+${5:-3600} seconds" +%%Y-%%m-%%dT%%H:%%M:%%S.000000+0000)" >>blocklist
	echo "blocklisting $a until then (${5:-3600} sec)" >&2 ;;
rm)
	grep -v "^$4 " blocklist >new; mv new blocklist
	echo "un-blocklisting $4" >&2 ;;
ls)
	sep=
	printf '\n['
	while read -r a u; do printf '%%s{"addr":"%%s","until":"%%s"}' "$sep" "$a" "$u"; sep=,; done <blocklist
	echo ']'
	echo "listed $(wc -l <blocklist) entries" >&2 ;;
*)
	echo "unknown command: $*" >&2; exit 22 ;;
esac
`

// rbdScript shows the files that Image wrote.
const rbdScript = `#!/bin/sh
cd '%s' || exit 1
echo "rbd $*" >>calls
[ -e rbd-hang ] && exec sleep 1000
for image; do :; done
name=$(echo "$image" | tr / _)
case "$*" in *"lock ls"*) f=$name.locks ;; *status*) f=$name.status ;; *) exit 22 ;; esac
[ -e "$f" ] || { echo "rbd: error opening image: (2) No such file or directory" >&2; exit 2; }
cat "$f"
`

func (c *Ceph) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

// Image makes an image with clients such as "10.77.0.11:0/4242"; the first one holds the lock, all watch.
func (c *Ceph) Image(name string, clients ...string) {
	c.t.Helper()
	locks, watchers := []string{}, []string{}
	for i, a := range clients {
		if i == 0 {
			locks = append(locks, fmt.Sprintf(`{"id":"auto 139643345791728","locker":"client.4125","address":%q}`, a))
		}
		watchers = append(watchers, fmt.Sprintf(`{"address":%q,"client":%d,"cookie":139643345791728}`, a, 4125+i))
	}
	file := strings.ReplaceAll(name, "/", "_")
	c.write(file+".locks", "["+strings.Join(locks, ",")+"]\n")
	c.write(file+".status", `{"watchers":[`+strings.Join(watchers, ",")+"]}\n")
}

// Fault makes a file beside the programs: hang, fail, forget, rbd-hang.
func (c *Ceph) Fault(name string) { c.t.Helper(); c.write(name, "") }

// Blocked is the blocklist, an entry a line without its end.
func (c *Ceph) Blocked() []string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "blocklist"))
	if err != nil {
		c.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		a, _, _ := strings.Cut(line, " ")
		out = append(out, a)
	}
	return out
}

// Block adds an entry by hand, for so many seconds.
func (c *Ceph) Block(address string, seconds int) {
	c.t.Helper()
	if _, err := c.Run(c.t.Context(), "ceph", "osd", "blocklist", "add", address, fmt.Sprint(seconds)); err != nil {
		c.t.Fatal(err)
	}
}

// Run runs ceph or rbd of this cluster.
func (c *Ceph) Run(ctx context.Context, argv ...string) ([]byte, error) {
	return sys.Output(ctx, append([]string{filepath.Join(c.dir, argv[0])}, argv[1:]...)...)
}
