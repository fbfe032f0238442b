# The targets of a service, included by its Makefile, which sets SERVICE, the name of the image, and PROGRAM, the
# file that the Dockerfile copies. Who copies a service also copies this file and settings.mk. Without the folders
# cluster/ and test/tools/ beside them, build, docker-build, docker-push and clean work; the others say what they need.

IMAGE  ?= $(REGISTRY)/$(SERVICE):$(TAG)
DOCKER ?= docker
GOARCH ?= $(shell go env GOARCH)
root   := $(dir $(lastword $(MAKEFILE_LIST)))
include $(root)settings.mk

.PHONY: build sbom docker-build docker-push push load image clean

# The texts of the licences of all modules in the program, and of Go, which the image must contain; in the order of the
# modules, so that the image does not depend on the paths of this machine.
licenses = modules=$$(GOOS=linux GOARCH=$(GOARCH) go list -deps -f '{{with .Module}}{{with .Replace}}{{.Path}} {{or .Version "(devel)"}}{{else}}{{.Path}} {{or .Version "(devel)"}}{{end}}{{"\t"}}{{.Dir}}{{end}}' .) && \
	{ printf 'std %s\t%s\n' "$$(go env GOVERSION)" "$$(go env GOROOT)"; echo "$$modules"; } | LC_ALL=C sort -u | while IFS="$$(printf '\t')" read -r module dir; do \
	for file in "$$dir"/LICEN[CS]E* "$$dir"/COPYING* "$$dir"/NOTICE*; do \
	[ ! -f "$$file" ] || { printf '\n==== %s, %s\n\n' "$$module" "$${file\#\#*/}"; cat "$$file"; }; done; done >licenses.txt

# The program contains neither paths nor the commit, so the same files give the same program in any checkout.
build:
	GOOS=linux GOARCH=$(GOARCH) go build -buildvcs=false -ldflags='-s -w' -o $(PROGRAM) .
	@$(licenses)

# The modules that the program contains, with their licences. The file also contains the tool's hash, so the tool is built without paths too.
sbom: $(root)test/tools/go.mod $(root)cluster/go.mod build
	@GOARCH= go tool -C $(root)test/tools cyclonedx-gomod bin -json -std -noserial -notimestamp \
		-version '(devel)' -output "$$PWD/sbom.cdx.json" "$$PWD/$(PROGRAM)"
	@GOARCH= go run -C $(root)cluster ./licenses "$$PWD/licenses.txt" "$$PWD/sbom.cdx.json"

docker-build: build
	@$(DOCKER) version >/dev/null 2>&1 || { echo 'building image "$(IMAGE)": $(DOCKER) does not answer;' \
		'start it, set DOCKER=podman, or use `make push` or `make load`, which do not need it' >&2; exit 1; }
	$(DOCKER) build --platform linux/$(GOARCH) -t '$(IMAGE)' .

docker-push: docker-build
	$(DOCKER) push '$(IMAGE)'

# Builds and pushes the image without Docker, for linux/amd64 and linux/arm64, each with its SBOM. Uses the credentials of docker login.
push: $(root)cluster/go.mod $(root)test/tools/go.mod
	@GOARCH= go run -C $(root)cluster . push '$(IMAGE)'="$$PWD"

# Builds the image without Docker, from the same Dockerfile, and loads it into the cluster that `make cluster-up` starts.
load: $(root)cluster/go.mod build
	@go run -C $(root)cluster . load -name '$(CLUSTER)' '$(IMAGE)'="$$PWD"

# Builds the image without Docker, from the same Dockerfile, and writes it to a file for kind, minikube, k3s and ctr.
image: $(root)cluster/go.mod build
	@mkdir -p $(root)images && GOARCH= go run -C $(root)cluster . save -arch '$(GOARCH)' ../images/$(SERVICE).tar '$(IMAGE)'="$$PWD"

clean:
	rm -f $(PROGRAM) licenses.txt sbom.cdx.json

$(root)cluster/go.mod $(root)test/tools/go.mod:
	@echo 'looking for "$@": it does not exist; copy its folder from https://github.com/jiangjiancc/go_micro_k8s,' \
		'or use make docker-build and make docker-push, which do not need it' >&2; exit 1
