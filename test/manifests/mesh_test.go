package manifests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMeshContainers adds the containers that service meshes inject to the Deployment of go-micro-srv: the namespace refuses those that
// change the pod's network, and accepts the sidecar that is left if the mesh's CNI plugin does that. See docs/mesh.md.
func TestMeshContainers(t *testing.T) {
	needsAPIServer(t)
	deployment, err := os.ReadFile(filepath.Join(root, "go-micro-srv/k8s/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const at = "\n      containers:\n"
	if strings.Count(string(deployment), at) != 1 {
		t.Fatal("the Deployment has not one list of containers")
	}
	for name, c := range map[string]struct{ container, refusal string }{
		"istio-init":     {`{name: istio-init, image: x/y:1, securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}, runAsNonRoot: false, runAsUser: 0}}`, "unrestricted capabilities"},
		"linkerd-init":   {`{name: linkerd-init, image: x/y:1, securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}, runAsNonRoot: true, runAsUser: 65534}}`, "unrestricted capabilities"},
		"native sidecar": {`{name: proxy, image: x/y:1, restartPolicy: Always, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, runAsNonRoot: true, runAsUser: 1337, seccompProfile: {type: RuntimeDefault}}}`, ""},
	} {
		err := dryRun(strings.Replace(string(deployment), at, "\n      initContainers: ["+c.container+"]"+at, 1))
		if refused := err != nil; refused != (c.refusal != "") || refused && !strings.Contains(err.Error(), c.refusal) {
			t.Errorf("%s: %v, want %q", name, err, c.refusal)
		}
	}
}
