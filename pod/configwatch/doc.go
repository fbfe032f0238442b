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
// The body of the loop runs with the current configuration, and again after each change
// of the ConfigMap. A program that wants the configuration only once, or merges it with
// config.NewConfig, uses a ConfigMap as any other source: Read returns the content, and
// Watch returns a watcher.
//
// # Values
//
// Each key holds its value as a string: cfg.Get("DB_HOST").String(""). If the key ends in
// .json, .yaml or .yml, the value is parsed and the key holds the tree:
// cfg.Get("app.yaml", "db", "host"). If a value holds several YAML documents, only the
// first one is read. A value that cannot be parsed stays a string, and the log has one
// line about it. go-micro replaces ${NAME} in a value by the environment variable NAME, as
// it does for every source. binaryData is ignored.
//
// The configmap plugin of go-plugins differs: it splits each value into key=value pairs,
// so that "localhost" becomes the map {"localhost": ""}. Its watcher does not notice when
// the ConfigMap is created or deleted, cannot be stopped, and has no time limit.
//
// # API server
//
// In a pod the package finds the API server through the environment that Kubernetes gives
// every pod, elsewhere through a kubeconfig. Each Read, Watch and Follow opens one
// connection and closes it at its end. Every call has a time limit of 5 s, except the
// watch itself. A lost watch is retried at most one second apart. A watch whose connection
// has become silent is given up, and retried, after 15 s.
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
