package api_test

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/api/apitest"
)

var update = flag.Bool("update", false, "write the golden files")

// serve is a server whose clients all count as local.
func serve(t *testing.T, f *apitest.Fake) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(api.NewServer(f.Backend(), api.Options{Local: func(*http.Request) bool { return true }}))
	t.Cleanup(srv.Close)
	return srv
}

// exchange is one request as a line of a transcript: METHOD PATH [BODY].
func exchange(t *testing.T, srv *httptest.Server, line string) string {
	t.Helper()
	method, rest, _ := strings.Cut(line, " ")
	path, body, _ := strings.Cut(rest, " ")
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+api.Prefix+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(body, "{") {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("> %s\n< %s\n< %s\n", line, resp.Status, strings.TrimSpace(string(b)))
}

// timeless replaces what depends on the moment.
func timeless(s string) string {
	s = regexp.MustCompile(`"timestamp":\d+`).ReplaceAllString(s, `"timestamp":0`)
	return regexp.MustCompile(`\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}`).ReplaceAllString(s, "DATE")
}

// Each file in testdata is a transcript: requests, answers, and at its end the changes that the backend was asked for.
func transcript(t *testing.T, name string, f *apitest.Fake, lines string) {
	t.Helper()
	srv := serve(t, f)
	var got strings.Builder
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		got.WriteString(timeless(exchange(t, srv, strings.TrimSpace(line))))
	}
	for _, c := range f.Calls() {
		got.WriteString("= " + c + "\n")
	}
	golden(t, "testdata/"+name+".golden", got.String())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); write it with -update:\n%s", file, diff)
	}
}

func TestClusterEndpoints(t *testing.T) {
	transcript(t, "cluster", apitest.New(), `
GET /version
GET /cluster/status
GET /sauh/cluster/status
POST /cluster/config clustername=demo&nodename=n1&link0=10.10.1.1&link1=address=10.10.2.1
POST /cluster/config {"clustername":"demo"}
POST /cluster/config clustername=demo&ha-profile=fast
POST /cluster/config nodename=n1
POST /cluster/config clustername=demo&link0=nonsense
POST /cluster/config clustername=demo&link0=10.0.0.1,priority=3
POST /cluster/config clustername=demo&votes=1
GET /cluster/config/nodes
DELETE /cluster/config/nodes/n3
DELETE /cluster/config/nodes/N_3
GET /cluster/resources
GET /cluster/resources?type=vm
GET /cluster/resources?type=node
GET /cluster/resources?type=storage
GET /cluster/resources?type=sdn
GET /cluster/resources?type=badcall
GET /cluster/nextid
GET /cluster/nextid?vmid=200
GET /cluster/nextid?vmid=100
GET /cluster/nextid?vmid=99
GET /cluster/nextid?vmid=abc
POST /sauh/cluster/key
POST /sauh/cluster/key valid=600
POST /sauh/cluster/key valid=0
POST /sauh/cluster/join key=KEY&nodename=n4
POST /sauh/cluster/join
POST /sauh/cluster/leave
POST /sauh/cluster/leave force=1
`)
}

func TestNodeEndpoints(t *testing.T) {
	transcript(t, "node", apitest.New(), `
GET /nodes
GET /nodes/n1/status
GET /nodes/localhost/status
GET /sauh/nodes/n1/info
GET /nodes/n9/status
GET /nodes/n2/status
GET /nodes/UPPER/status
GET /nodes/n1/status?x=1
`)
}

func TestGuestEndpoints(t *testing.T) {
	transcript(t, "guest", apitest.New(), `
GET /sauh/guests
GET /nodes/n1/qemu
GET /nodes/n1/qemu?full=1
GET /nodes/n1/qemu?full=true
POST /nodes/n1/qemu vmid=200&name=new&memory=512&cores=2&virtio0=nas:1&net0=virtio,bridge=vmbr0&start=1
POST /nodes/n1/qemu {"vmid":201,"cores":2,"onboot":true,"tags":["a","b"],"description":null}
POST /nodes/n1/qemu vmid=100
POST /nodes/n1/qemu name=x
POST /nodes/n1/qemu vmid=200&cores=two&onboot=true&cpulimit=x&net99=y&virtio16=z&bogus=1
POST /nodes/n1/qemu vmid=1000000000
POST /nodes/n1/qemu?vmid=200 vmid=201
POST /nodes/n1/qemu [1]
POST /nodes/n1/qemu {"vmid":{"a":1}}
POST /nodes/n1/qemu {broken
GET /nodes/n1/qemu/100
GET /nodes/n1/qemu/100/config
GET /nodes/n1/qemu/100/config?current=1
GET /nodes/n1/qemu/100/config?snapshot=s1
GET /nodes/n1/qemu/102/config
GET /nodes/n1/qemu/999/config
GET /nodes/n1/qemu/abc/config
PUT /nodes/n1/qemu/100/config memory=1024&delete=net1%3Bnet0&digest=da39a3ee5e6b4b0d3255bfef95601890afd80709
POST /nodes/n1/qemu/100/config cores=4
PUT /nodes/n1/qemu/100/config
PUT /nodes/n1/qemu/100/config delete=bogus
PUT /nodes/n1/qemu/100/config cores=1&delete=cores
GET /nodes/n1/qemu/100/status/current
GET /nodes//n1/qemu/101/status/current/
GET /nodes/n1/qemu/999/status/current
POST /nodes/n1/qemu/101/status/start
POST /nodes/n1/qemu/101/status/start {}
POST /nodes/n1/qemu/102/status/start
POST /nodes/n1/qemu/100/status/stop timeout=5
POST /nodes/n1/qemu/100/status/shutdown
POST /nodes/n1/qemu/100/status/shutdown timeout=5&forceStop=1
POST /nodes/n1/qemu/100/status/shutdown timeout=-1
POST /nodes/n1/qemu/100/status/reboot
POST /nodes/n1/qemu/100/migrate target=n2&online=1
POST /nodes/n1/qemu/100/migrate
POST /nodes/n1/qemu/100/migrate target=n1
POST /nodes/n1/qemu/100/migrate target=N_2
POST /nodes/n1/qemu/100/migrate target=n2&online=maybe
DELETE /nodes/n1/qemu/101?purge=1&destroy-unreferenced-disks=1
DELETE /nodes/n1/qemu/100
DELETE /nodes/n1/qemu/999
DELETE /nodes/n1/qemu/101 purge=1
GET /sauh/nodes/n1/qemu/100/console
GET /sauh/nodes/n1/qemu/999/console
`)
}

func TestTaskEndpoints(t *testing.T) {
	f := apitest.New()
	f.TaskFails["qmstop"] = "VM quit/powerdown failed"
	const start, stop, mig = "UPID:n1:00001267:00000000:695735A5:qmstart:101:root@pam:", "UPID:n1:00001267:00000001:695735A6:qmstop:100:root@pam:",
		"UPID:n1:00001267:00000002:695735A7:qmigrate:100:root@pam:"
	const unknown = "UPID:n1:00001267:00000009:695735A5:qmstart:101:root@pam:"
	transcript(t, "task", f, `
POST /nodes/n1/qemu/101/status/start
POST /nodes/n1/qemu/100/status/stop
POST /nodes/n1/qemu/100/migrate target=n2&online=1
GET /nodes/n1/tasks
GET /nodes/n1/tasks?source=all&limit=2
GET /nodes/n1/tasks?source=all&start=2
GET /nodes/n1/tasks?source=active
GET /nodes/n1/tasks?errors=1
GET /nodes/n1/tasks?vmid=101
GET /nodes/n1/tasks?typefilter=qmstop
GET /nodes/n1/tasks?source=bogus
GET /nodes/n1/tasks?start=99
GET /nodes/n1/tasks/`+start+`/status
GET /nodes/n1/tasks/`+strings.ReplaceAll(stop, ":", "%3A")+`/status
GET /nodes/n1/tasks/`+mig+`/status
GET /nodes/n1/tasks/`+unknown+`/status
GET /nodes/n1/tasks/nonsense/status
GET /nodes/n1/tasks/`+start+`/log
GET /nodes/n1/tasks/`+start+`/log?start=1&limit=1
GET /nodes/n1/tasks/`+start+`/log?start=-1
GET /nodes/n1/tasks/`+unknown+`/log
DELETE /nodes/n1/tasks/`+mig+`
DELETE /nodes/n1/tasks/`+unknown+`
GET /sauh/nodes/n1/tasks/`+mig+`
GET /sauh/nodes/n1/tasks
`)
}

func TestStorageEndpoints(t *testing.T) {
	transcript(t, "storage", apitest.New(), `
GET /storage
GET /storage?type=nfs
POST /storage storage=nas2&type=dir&path=/mnt/nas2&shared=1&content=images&late-writes=no
POST /storage storage=nas2&type=zfs&path=/x
POST /storage storage=nas2&type=dir
POST /storage storage=nas2&type=dir&path=/x&late-writes=perhaps&shared=yes
DELETE /storage/nas2
GET /nodes/n1/storage
GET /nodes/n1/storage?content=iso
GET /sauh/nodes/n1/storage
GET /nodes/n1/storage/nas/content
GET /nodes/n1/storage/nas/content?vmid=101
GET /nodes/n1/storage/nas/content?content=iso
GET /nodes/n1/storage/nope/content
POST /nodes/n1/storage/nas/content vmid=100&size=4G&format=qcow2&filename=vm-100-disk-1.qcow2
POST /nodes/n1/storage/nas/content vmid=100&size=1024
POST /nodes/n1/storage/nas/content vmid=100&size=4T
POST /nodes/n1/storage/nas/content vmid=100&size=999999999999G
POST /nodes/n1/storage/nas/content vmid=5&size=1G&format=vmdk
POST /nodes/n1/storage/nas/content size=1G
DELETE /nodes/n1/storage/nas/content/nas:100/vm-100-disk-0.qcow2
DELETE /nodes/n1/storage/nas/content/nas%3A100%2Fvm-100-disk-0.qcow2
DELETE /nodes/n1/storage/nas/content/100/vm-100-disk-0.qcow2
DELETE /nodes/n1/storage/nas/content/other:100/vm-100-disk-0.qcow2
DELETE /nodes/n1/storage/nas/content
`)
}
