// Package configwatch makes a Kubernetes ConfigMap a source of go-micro's
// configuration, and watches it for changes:
//
//	for cfg, err := range configwatch.New("", "go-micro-config").Follow(ctx, env.NewSource()) {
//		if err != nil {
//			return err
//		}
//		host := cfg.Get("DB_HOST").String("localhost")
//		...
//	}
//
// The body of the loop runs with the present configuration, and again after each change
// of the ConfigMap. A program that wants the configuration only once, or merges it with
// config.NewConfig, uses a ConfigMap as any other source: Read returns the content, and
// Watch returns a watcher.
//
// # Values
//
// Each key holds its value as a string: cfg.Get("DB_HOST").String(""). If the key ends in
// .json, .yaml or .yml, the value is parsed and the key holds the tree:
// cfg.Get("app.yaml", "db", "host"). Of several YAML documents in one value the first one
// counts. A value that does not parse stays a string, and the log has one line about it.
// go-micro replaces ${NAME} in a value by the environment variable NAME, as it does for
// every source. binaryData is ignored.
//
// The configmap plugin of go-plugins differs: it splits each value into key=value pairs,
// so that "localhost" becomes the map {"localhost": ""}. Its watcher does not see that the
// ConfigMap was created or deleted, cannot be stopped, and has no time limit.
//
// # API server
//
// The API server is found as a pod finds it, or outside a pod through a kubeconfig. Each
// Read, Watch and Follow opens one connection and closes it at its end. Every call has a
// time limit of 5 s, except the watch itself. A watch that is closed, cut, refused or
// expired is retried at most one second apart; a watch whose connection is silent is
// noticed after 15 s.
//
// The service account needs these verbs on the ConfigMap, which k8s/configmap-rbac.yaml
// grants:
//
//	get           Read, and the first read of Follow
//	list, watch   Follow and Watch
//
// # Environment
//
//	KUBERNETES_SERVICE_HOST   with KUBERNETES_SERVICE_PORT the address of the API server; every pod has both
//	KUBECONFIG                outside a pod: the kubeconfig of the cluster
//
// # Size
//
// The package links go-micro's config packages, and neither its service framework nor
// etcd: a program that only reads its configuration stays small.
package configwatch
