package api_test

import (
	"testing"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/api/apitest"
)

const fakeDigest = "5ba93c9db0cff93f52b521d7420e43f6eda2784f"

func TestHAResourceEndpoints(t *testing.T) {
	transcript(t, "ha", apitest.New(), `
GET /cluster/ha
GET /cluster/ha/resources
GET /cluster/ha/resources?type=vm
GET /cluster/ha/resources?type=ct
POST /cluster/ha/resources sid=vm:101&state=stopped&comment=a%20note&max_restart=3&failback=0&after=vm:100:agent
POST /cluster/ha/resources sid=103&state=enabled
POST /cluster/ha/resources sid=vm:100
POST /cluster/ha/resources sid=ct:101
POST /cluster/ha/resources sid=vm:104&type=ct
POST /cluster/ha/resources sid=vm:104&group=fast
POST /cluster/ha/resources sid=vm:104&max_restart=-1&failback=maybe&bogus=1
POST /cluster/ha/resources state=started
POST /cluster/ha/resources sid=vm:104&state=running
GET /cluster/ha/resources/vm:100
GET /cluster/ha/resources/vm%3A100
GET /cluster/ha/resources/vm:199
GET /cluster/ha/resources/bogus
PUT /cluster/ha/resources/vm:100 state=enabled&digest=`+fakeDigest+`
PUT /cluster/ha/resources/vm:100 state=stopped&digest=0123456789012345678901234567890123456789
PUT /cluster/ha/resources/vm:100 comment=new&max_relocate=2&auto-rebalance=1
PUT /cluster/ha/resources/vm:100 comment=&delete=max_restart
PUT /cluster/ha/resources/vm:100 delete=bogus
PUT /cluster/ha/resources/vm:100 comment=x&delete=comment
PUT /cluster/ha/resources/vm:100 group=fast
PUT /cluster/ha/resources/vm:199 state=stopped
DELETE /cluster/ha/resources/vm:100
DELETE /cluster/ha/resources/vm:101?purge=0
DELETE /cluster/ha/resources/vm:199
`)
}

func TestHARuleEndpoints(t *testing.T) {
	f := apitest.New()
	f.Groups.List = []api.Section{{Type: "group", ID: "fast", Values: map[string]string{"nodes": "n1:2,n2", "restricted": "1"}}}
	f.Rules.Dropped = map[string]string{"two-shops": "it contradicts another"}
	transcript(t, "harules", f, `
GET /cluster/ha/rules
GET /cluster/ha/rules?type=node-affinity
GET /cluster/ha/rules?resource=vm:101
GET /cluster/ha/rules?type=bogus
GET /cluster/ha/rules/two-shops
GET /cluster/ha/rules/none
POST /cluster/ha/rules rule=apart&type=resource-affinity&resources=vm:100,vm:101&affinity=negative&domain=site
POST /cluster/ha/rules rule=shop-near&type=node-affinity&resources=vm:100&nodes=n1
POST /cluster/ha/rules rule=x1&type=node-affinity
POST /cluster/ha/rules rule=x1&type=group&resources=vm:100
POST /cluster/ha/rules rule=x1&type=resource-affinity&resources=vm:100&weight=1001&domain=rowhouse&strict=maybe
PUT /cluster/ha/rules/shop-near type=node-affinity&nodes=n2&strict=0&digest=`+fakeDigest+`
PUT /cluster/ha/rules/shop-near nodes=n2&digest=0123456789012345678901234567890123456789
PUT /cluster/ha/rules/shop-near type=resource-affinity&nodes=n2
PUT /cluster/ha/rules/shop-near delete=comment,strict
PUT /cluster/ha/rules/shop-near delete=bogus
PUT /cluster/ha/rules/none nodes=n2
DELETE /cluster/ha/rules/shop-near
DELETE /cluster/ha/rules/shop-near
GET /cluster/ha/groups
GET /cluster/ha/groups/fast
GET /cluster/ha/groups/none
POST /cluster/ha/groups group=slow&nodes=n1
PUT /cluster/ha/groups/fast nodes=n1
DELETE /cluster/ha/groups/fast
`)
}

func TestHAStatusEndpoints(t *testing.T) {
	f := apitest.New()
	f.Alarms = []api.HAAlarm{{SID: "vm:100", Unix: apitest.Start, Text: "vm:100 runs on n1 and on n2"}}
	transcript(t, "hastatus", f, `
GET /cluster/ha/status
GET /cluster/ha/status/current
GET /cluster/ha/status/manager_status
GET /sauh/ha/status
GET /sauh/ha/explain/vm:100
GET /sauh/ha/explain/100
GET /sauh/ha/explain/vm:101
GET /sauh/ha/explain/bogus
GET /sauh/ha/what-if?nodes=n2
GET /sauh/ha/what-if?nodes=n2,n3
GET /sauh/ha/what-if?nodes=n9
GET /sauh/ha/what-if
GET /sauh/nodes/n1/ha/alarms
GET /sauh/nodes/n2/ha/alarms
DELETE /sauh/nodes/n1/ha/alarms/vm:100
DELETE /sauh/nodes/n1/ha/alarms/vm:100
GET /sauh/nodes/n1/ha/alarms
`)
}

func TestADisarmedClusterWithoutAManagerSaysSo(t *testing.T) {
	f := apitest.New()
	f.HA.Disarm, f.HA.Until, f.HA.Manager, f.HA.Quorate, f.HA.Tolerance, f.HA.Services = "freeze", apitest.Start, "", false, nil, nil
	f.HA.Nodes[0].Mode, f.HA.Nodes[1].State, f.HA.Nodes[2].State = "reboot", "suspect", "left"
	transcript(t, "hadisarmed", f, `
GET /cluster/ha/status/current
GET /cluster/ha/status/manager_status
`)
}

func TestHAControlEndpoints(t *testing.T) {
	transcript(t, "hacontrol", apitest.New(), `
POST /cluster/ha/resources/vm:100/migrate node=n2
POST /cluster/ha/resources/100/relocate node=n2
POST /cluster/ha/resources/vm:199/migrate node=n2
POST /cluster/ha/resources/vm:100/migrate node=n9
POST /cluster/ha/resources/vm:100/migrate
POST /sauh/ha/resources/vm:100/stop timeout=30
POST /sauh/ha/resources/vm:100/stop
POST /sauh/ha/resources/vm:100/stop timeout=-1
POST /sauh/ha/resources/vm:199/stop timeout=0
PUT /sauh/ha/nodes/n2/maintenance
DELETE /sauh/ha/nodes/n2/maintenance
PUT /sauh/ha/nodes/localhost/maintenance
PUT /sauh/ha/nodes/n9/maintenance
POST /cluster/ha/status/disarm-ha resource-mode=freeze
POST /cluster/ha/status/disarm-ha resource-mode=ignore&for=600
POST /cluster/ha/status/disarm-ha
POST /cluster/ha/status/disarm-ha resource-mode=sleep
POST /cluster/ha/status/arm-ha
PUT /sauh/ha/nodes/n2/disarm resource-mode=ignore&for=60
PUT /sauh/ha/nodes/n9/disarm resource-mode=ignore
DELETE /sauh/ha/nodes/n2/disarm
PUT /sauh/ha/nodes/n2/labels rack=r1&site=
PUT /sauh/ha/nodes/n9/labels rack=r1
POST /nodes/n1/status command=reboot
POST /nodes/localhost/status command=shutdown
POST /nodes/n2/status command=shutdown
POST /nodes/n1/status command=explode
POST /nodes/n1/status
`)
}

func TestAMoveNamesThoseThatGoAlongAndThoseInTheWay(t *testing.T) {
	f := apitest.New()
	f.Moved = api.HAMove{With: []string{"vm:101"}, Blocking: []api.HABlocking{{SID: "vm:102", Cause: "resource-affinity"}}}
	transcript(t, "hamove", f, `
POST /cluster/ha/resources/vm:100/migrate node=n2
`)
}

func TestHAFenceEndpoints(t *testing.T) {
	transcript(t, "hafence", apitest.New(), `
GET /sauh/ha/fence
PUT /sauh/ha/fence config=ipmi:%20n2-bmc%0A%09node%20n2%0A&digest=`+fakeDigest+`
PUT /sauh/ha/fence config=x&digest=0123456789012345678901234567890123456789
PUT /sauh/ha/fence
GET /sauh/ha/fence/methods
PUT /sauh/ha/fence/methods/n2-bmc type=redfish&address=10.0.0.1&password-file=priv/fence/n2&delete=uuid
PUT /sauh/ha/fence/methods/n2-bmc type=redfish&address=10.0.0.1&secret=hush
PUT /sauh/ha/fence/methods/n2-bmc type=apc
PUT /sauh/ha/fence/methods/n2-bmc delete=bogus
PUT /sauh/ha/fence/methods/n2-bmc password=secret
DELETE /sauh/ha/fence/methods/n2-bmc
DELETE /sauh/ha/fence/methods/none
PUT /sauh/ha/fence/secrets/n2 secret=hush
PUT /sauh/ha/fence/secrets/n2
DELETE /sauh/ha/fence/secrets/n2
POST /sauh/ha/fence-test/n2
POST /sauh/ha/fence-test/n2 switch=1
POST /sauh/ha/fence-test/n9
`)
}

func TestOptionEndpoints(t *testing.T) {
	f := apitest.New()
	f.Options = map[string]string{
		"ha": "shutdown_policy=migrate", "crs": "ha=static,ha-rebalance-on-start=1,ha-auto-rebalance=on,ha-auto-rebalance-margin=5",
		"failures-to-tolerate": "1,policy=warn", "keyboard": "de",
	}
	transcript(t, "haoptions", f, `
GET /cluster/options
PUT /cluster/options ha=shutdown_policy=freeze&failures-to-tolerate=1&digest=`+fakeDigest+`
PUT /cluster/options ha=shutdown_policy=freeze&digest=0123456789012345678901234567890123456789
PUT /cluster/options delete=crs
PUT /cluster/options keyboard=de
PUT /cluster/options delete=keyboard
PUT /cluster/options nonsense=1
`)
}
