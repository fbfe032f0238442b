//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	corev1 "k8s.io/api/core/v1"
)

// TestAdoptedServices runs the four Deployments and reads the three ConfigMaps of preflight/testdata/mended: services of others, with
// only the changes that docs/adopting.md and the findings of preflight name.
func TestAdoptedServices(t *testing.T) {
	const shop = "shop"
	begin := time.Now()
	loadShop(t)
	nodes := strings.Fields(kubectl(t, "get", "nodes", "-o", "name"))
	kubectl(t, "delete", "namespace", shop, "--ignore-not-found") // if the test runs again
	apply(t, `{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`)
	t.Cleanup(func() {
		kubectl(t, "delete", "namespace", shop, "--wait=false")
		kubectl(t, "label", nodes[0], "disk-")
	})
	kubectl(t, "label", nodes[0], "--overwrite", "disk=ssd") // of the nodeSelector of user-web
	// As docs/adopting.md says: the label and the annotation of the namespace, and the Role with the account of friends in its binding.
	kubectl(t, "label", "namespace", shop, "micro.mu/pod-admission=enforce")
	kubectl(t, "annotate", "namespace", shop, "micro.mu/service-accounts=micro-services, friends")
	kubectl(t, "apply", "-f", "k8s/pod-admission.yaml")
	rbac := strings.ReplaceAll(string(must(os.ReadFile(filepath.Join(root, "k8s/pod-rbac.yaml")))), "go-micro", shop)
	apply(t, rbac)
	kubectl(t, "create", "serviceaccount", "friends", "-n", shop)
	kubectl(t, "create", "role", "read-configuration", "-n", shop, "--verb=get,list,watch", "--resource=configmaps",
		"--resource-name=account", "--resource-name=account-config", "--resource-name=friends")
	kubectl(t, "create", "rolebinding", "read-configuration", "-n", shop, "--role=read-configuration", "--serviceaccount=shop:micro-services", "--serviceaccount=shop:friends")
	// imagePullPolicy: Never wants the image on the node.
	kubectl(t, "run", "pull", "-n", shop, "--image=example/friends:1", "--restart=Never")
	eventually(t, time.Minute, "the image on the node", func() error {
		if phase := kubectl(t, "get", "pod", "pull", "-n", shop, "-o", "jsonpath={.status.phase}"); phase == "Pending" {
			return errors.New("the pod is pending")
		}
		return nil
	})
	kubectl(t, "delete", "pod", "pull", "-n", shop, "--now")

	files := must(filepath.Glob(filepath.Join(root, "preflight/testdata/mended/*.yaml")))
	if len(files) != 7 {
		t.Fatalf("preflight/testdata/mended has %q, want four Deployments and three ConfigMaps", files)
	}
	slices.Sort(files) // the ConfigMaps first
	for _, file := range files {
		kubectl(t, "apply", "-f", file)
	}
	for _, d := range []string{"account", "friends", "stock", "user-web"} {
		if err := command(2*time.Minute, nil, "kubectl", "rollout", "status", "-n", shop, "deployment/"+d, "--timeout=90s"); err != nil {
			t.Fatalf("%v\n%s\n%s", err, kubectl(t, "get", "pods", "-n", shop, "-o", "wide"), kubectl(t, "logs", "-n", shop, "deployment/"+d, "--tail=20"))
		}
	}
	for name, app := range map[string]string{"account": "account", "friends": "friends", "stock": "stock", "shop.web.user": "user-web"} {
		var list corev1.PodList
		fatal(t, get(faults.PodsOf(shop, app), &list))
		for _, p := range list.Items {
			if p.DeletionTimestamp == nil && p.Annotations["micro.mu/service-"+name] == "" {
				t.Errorf("pod %q has not registered %q: %v", p.Name, name, p.Annotations)
			}
		}
	}
	page := func(path string) string {
		var list corev1.PodList
		fatal(t, get(faults.PodsOf(shop, "user-web"), &list))
		return kubectl(t, "get", "--raw", "/api/v1/namespaces/shop/pods/"+list.Items[0].Name+":8080/proxy"+path)
	}
	if got, want := page("/"), "account greets shop.web.user\nfriends greets shop.web.user\nstock greets shop.web.user\n"; got != want {
		t.Errorf("the page is %q, want %q", got, want)
	}
	if got, want := page("/upload"), fmt.Sprintf("received %d bytes, error <nil>", 5<<20); got != want {
		t.Errorf("an upload of 5 MiB: %q, want %q", got, want)
	}
	for app, maps := range map[string][]string{
		"account": {"ConfigMap account-config: map[config.yaml:map[features:map[beta:true]]]",
			"worker_id:1234567890123456789", "country:NO", "zip:08123", "mode:0644", "flush_interval:5000000000", "log.level:WARNING", "test.extra.opts:-Xmx1g"},
		"friends": {"ConfigMap friends: map[limits:1000 mysql_url:user:secret@tcp(db:3306)/friends trace_url:tracing:11800]"},
	} {
		log := kubectl(t, "logs", "-n", shop, "deployment/"+app)
		for _, want := range maps {
			if !strings.Contains(log, want) {
				t.Errorf("the log of %s does not contain %q:\n%s", app, want, log)
			}
		}
	}
	t.Logf("%.1f s", time.Since(begin).Seconds())
}

// loadShop builds the images that the Deployments name, all of the probe, and loads them.
func loadShop(t *testing.T) {
	t.Helper()
	ctx, c := context.Background(), faults.Cluster{Root: root, Name: clusterName}
	dir := t.TempDir()
	_, err := c.ProbeImage(ctx, probeImage, dir)
	fatal(t, err)
	var images []string
	for _, s := range []struct{ image, arguments string }{
		{"account", `"account", "account", "account-config"`}, {"friends", `"friends", "friends"`}, {"stock", `"stock"`}, {"user-web", `"shop.web.user"`},
	} {
		service := filepath.Join(t.TempDir(), s.image)
		fatal(t, os.Mkdir(service, 0o755))
		fatal(t, os.Link(filepath.Join(dir, "probe"), filepath.Join(service, "probe")))
		dockerfile := strings.Replace(string(must(os.ReadFile(filepath.Join(dir, "Dockerfile")))), `ENTRYPOINT ["/probe"]`, `ENTRYPOINT ["/probe", "shop", `+s.arguments+`]`, 1)
		fatal(t, os.WriteFile(filepath.Join(service, "Dockerfile"), []byte(dockerfile), 0o644))
		images = append(images, "example/"+s.image+":1="+service)
	}
	fatal(t, c.LoadImages(ctx, images...))
}
