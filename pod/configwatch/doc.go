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
// of the ConfigMap, or of a ConfigMap or Secret that Follow merges before it. A program that wants the
// configuration only once, or merges it with
// config.NewConfig, uses a ConfigMap as any other source: Read returns the content, and
// Watch returns a watcher.
//
// # Values
//
// Each key holds its value as a string: cfg.Get("DB_HOST").String(""). If the key ends in
// .json, .yaml or .yml, the value is parsed and the key holds the tree:
// cfg.Get("app.yaml", "db", "host"). If a value holds several YAML documents, only the
// first one is read. A byte order mark before JSON or YAML is ignored. A value that cannot be parsed stays a
// string, and the log has one line about it. It also has one line about a key that is read as text or as a map of
// texts and is something else, for which go-micro returns the default. go-micro replaces ${NAME} in a value by the
// environment variable
// NAME, as it does for every source. binaryData is ignored.
//
// Follow keeps all digits of an integer in JSON, and of 64 bits in YAML; a longer one in YAML counts as a
// value that cannot be parsed. config.NewConfig merges sources as float64, so there an integer beyond 2^53 is a
// string, which Get(...).Int reads. Follow also lets a tree replace the text that an earlier source has under
// the same key, and null replace any value; config.NewConfig keeps the earlier value in both cases.
//
// The configmap plugin of go-plugins differs: it splits each value into key=value pairs,
// so that "localhost" becomes the map {"localhost": ""}. Its watcher does not notice when
// the ConfigMap is created or deleted, cannot be stopped, and has no time limit.
//
// # From a ConfigMap to a printed map
//
// An edit takes these steps:
//
//	Connection.ListWatchConfigMap (pod/internal/apiserver) receives the ConfigMap from the watch
//	watcher.Update                (watcher.go)             keeps its data
//	watcher.Next                  (watcher.go)             returns the data as a change set
//	newSnapshot                   (snapshot.go)            merges it with the other sources
//	ConfigMap.Follow              (configmap.go)           yields the configuration
//	printChanges                  (go-micro-config)        prints its map
//
// # API server
//
// In a pod the package finds the API server through the environment that Kubernetes gives
// every pod, elsewhere through a kubeconfig. Each Read, Watch and Follow opens one
// connection and closes it at its end. Every call has a time limit of 5 s, except the
// watch itself. While the API server cannot be reached at the start, Follow waits for it: the sidecar of a
// service mesh may start after the process. A lost watch is retried at most one second apart, and
// one that is refused up to 30 s apart. A watch whose connection has become silent is given up, and
// retried, after 15 s.
//
// The service account needs these verbs on each ConfigMap or Secret. For one ConfigMap k8s/configmap-rbac.yaml
// grants them:
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
