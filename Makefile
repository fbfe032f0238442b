# `make` lists the targets. NAME=value arguments: CLUSTER (demo), REGISTRY and TAG (for deploy and push).

SERVICES := go-micro-srv go-micro-web go-micro-client go-micro-config
CLUSTER  ?= demo
REGISTRY ?= 846602483
TAG      ?= kubernetes
KUBE     := go run -C cluster .
TOOL      = go tool -modfile=$(call quote,$(CURDIR)/test/tools/go.mod)
include cluster/settings.mk

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## start a Kubernetes, run the four services on it, show what the README shows
	@CLUSTER='$(CLUSTER)' cluster/demo.sh

test: ## vet, unit tests, end-to-end tests on a cluster of their own
	@test/run.sh

lint: ## what golangci-lint finds, by .golangci.yml (the first time 3 minutes)
	@for m in . cluster proto/gen test/psa third_party/etcd; do (cd $$m && $(TOOL) golangci-lint run --build-tags e2e ./...) || exit; done

vuln: ## what govulncheck finds; it asks vuln.go.dev, so it is not in make test
	@test/vuln.sh

bench: ## measure pod/ beside go-micro's plugin and selector, into test/bench/RESULTS.md (7 minutes)
	@go run ./test/bench

screenshots: ## the pictures of the page in media/, taken anew (2 minutes)
	@go test -count=1 -tags e2e ./test/e2e -run 'TestPage$$' -args -screenshots

cluster-up: ## only the Kubernetes, without the services
	@$(KUBE) up -name '$(CLUSTER)'

cluster-down: ## stop it and remove every trace
	@$(KUBE) down -name '$(CLUSTER)'

build: ## the four programs, static, for linux
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s build || exit; done

load: ## build the four images without Docker and put them into the cluster
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s load CLUSTER='$(CLUSTER)' || exit; done

sbom: ## list what each program is made of, in go-micro-*/sbom.cdx.json
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s sbom || exit; done

push: ## build the four images for amd64 and arm64 and push them to REGISTRY, with their SBOMs
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s push IMAGE='$(REGISTRY)'/$$s:'$(TAG)' || exit; done

deploy: ## apply the manifests to the current kubectl context, with the images that push put into REGISTRY
	@$(overlay)
	kubectl apply -k $(OVERLAY)

undeploy: ## delete from it what deploy applied
	@$(overlay)
	kubectl delete -k $(OVERLAY) --ignore-not-found

# kustomize takes new image names from a file, not from flags: this writes one.
OVERLAY := .cluster/deploy
define overlay
mkdir -p $(OVERLAY); { printf 'resources: [../../k8s]\nimages:\n'; \
for s in $(SERVICES); do printf -- '- {name: 846602483/%s, newName: "%s/%s", newTag: "%s"}\n' $$s '$(REGISTRY)' $$s '$(TAG)'; done; } > $(OVERLAY)/kustomization.yaml
endef

proto: ## generate proto/*.go again
	go run -C proto/gen .

verify: ## fail when the generated code is not what proto/greeter.proto gives
	go run -C proto/gen . -verify

clean: ## stop the clusters of this checkout, delete what was built here (the cache in ~/.cache/k8s-micro stays)
	@for d in .cluster/*/cluster.json; do [ ! -e "$$d" ] || $(KUBE) down -name "$$(basename "$$(dirname "$$d")")" || exit; done
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s clean || exit; done
	rm -rf .cluster

.PHONY: help demo test lint vuln bench screenshots cluster-up cluster-down build load sbom push deploy undeploy proto verify clean
