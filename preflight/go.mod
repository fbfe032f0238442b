// A module of its own: `go run MODULE/PACKAGE@VERSION` refuses a module with replace lines, as the root module has,
// and a service runs this command before it changes its own go.mod.
module github.com/jiangjiancc/go_micro_k8s/preflight

go 1.26.0

require (
	go.yaml.in/yaml/v2 v2.4.5
	go.yaml.in/yaml/v3 v3.0.5
)
