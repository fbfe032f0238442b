# `make` lists the targets. CLUSTER=NAME selects the cluster. push, images, deploy and undeploy also take REGISTRY= and TAG=;
# deploy and undeploy take COMPONENTS=; faults takes FAULT=.

SERVICES := go-micro-srv go-micro-web go-micro-client go-micro-config
CLUSTER  ?= demo
REGISTRY ?= 846602483
TAG      ?= kubernetes
KUBE     := GOOS= GOARCH= go run -C cluster .
TOOL      = go tool -modfile=$(call quote,$(CURDIR)/test/tools/go.mod)
include cluster/settings.mk

.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## start a cluster, run the four services on it and show what they do
	@CLUSTER='$(CLUSTER)' cluster/demo.sh

check: ## format, vet, lint and the unit tests that need no Kubernetes (under 2 minutes)
	@test/run.sh check

test: ## everything that CI runs: check, all unit tests, end-to-end tests (about 25 minutes)
	@test/run.sh

lint: ## run golangci-lint (3 minutes the first time)
	@for m in . cluster proto/gen test/bench/peers test/faults/plot test/policies third_party/etcd; do (cd $$m && $(TOOL) golangci-lint run --build-tags e2e ./...) || exit; done

vuln: ## run govulncheck; make test leaves it out, because it needs vuln.go.dev
	@test/vuln.sh

compat: ## test the manifests and pod/ with the API servers of the oldest supported versions (6 minutes, the first time 15)
	@test/compat.sh

bench: ## compare pod/ with go-micro alone, kratos, go-zero and grpc-go, write test/bench/RESULTS.md (20 minutes)
	@go run ./test/bench

faults: ## break the demo cluster in 11 ways while go-micro's plugin and pod/ call; FAULT=list, FAULT=NAME (15 minutes)
	@[ '$(FAULT)' = list ] || $(KUBE) status -name '$(CLUSTER)' >/dev/null 2>&1 || CLUSTER='$(CLUSTER)' cluster/demo.sh
	@go run ./test/faults/run -cluster '$(CLUSTER)' -fault '$(FAULT)'

screenshots: ## renew the pictures of the page in media/ (2 minutes)
	@go test -count=1 -tags e2e ./test/e2e -run 'TestPage$$' -args -screenshots

cluster-up: ## start only the cluster, without the services
	@$(KUBE) up -name '$(CLUSTER)'

cluster-down: ## stop the cluster and remove everything it created
	@$(KUBE) down -name '$(CLUSTER)'

cluster-%: # any other command of the launcher: make cluster-status, make cluster-node ARGS='ps ax'
	@$(KUBE) $* -name '$(CLUSTER)' $(ARGS)

build: ## build the four programs, static, for Linux
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s build || exit; done

load: ## build the four images without Docker and load them into the cluster
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s load CLUSTER='$(CLUSTER)' || exit; done

images: ## build the four images without Docker and write them to images/*.tar, for clusters without a registry
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s image IMAGE='$(REGISTRY)'/$$s:'$(TAG)' || exit; done

sbom: ## write the SBOM of each program to go-micro-*/sbom.cdx.json
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s sbom || exit; done

push: ## build the four images for amd64 and arm64 and push them to REGISTRY, with their SBOMs
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s push IMAGE='$(REGISTRY)'/$$s:'$(TAG)' || exit; done

deploy: overlay ## apply the manifests to the current kubectl context, with the images in REGISTRY
	kubectl apply -k $(OVERLAY)

verify-deploy: ## check what deploy applied, on the current kubectl context: pods, registrations, answers
	@go run ./k8s/verify

undeploy: overlay ## delete everything that deploy applied
	kubectl delete -k $(OVERLAY) --ignore-not-found

# kustomize reads image names and components from a file, not from flags. This target writes that file.
OVERLAY := .cluster/deploy
overlay:
	@mkdir -p $(OVERLAY); { printf 'resources: [../../k8s]\ncomponents: ['; for c in $(COMPONENTS); do printf '../../k8s/components/%s,' $$c; done; printf ']\nimages:\n'; \
	for s in $(SERVICES); do printf -- '- {name: 846602483/%s, newName: "%s/%s", newTag: "%s"}\n' $$s '$(REGISTRY)' $$s '$(TAG)'; done; } > $(OVERLAY)/kustomization.yaml

proto: ## generate proto/*.go from proto/greeter.proto
	go run -C proto/gen .

verify: ## fail if proto/*.go differs from what proto/greeter.proto generates
	go run -C proto/gen . -verify

clean: ## stop the clusters of this checkout and delete its build results; ~/.cache/k8s-micro stays
	@for d in .cluster/*/cluster.json; do [ ! -e "$$d" ] || $(KUBE) down -name "$$(basename "$$(dirname "$$d")")" || exit; done
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s clean || exit; done
	rm -rf .cluster images

.PHONY: help demo check test lint vuln compat bench faults screenshots cluster-up cluster-down build load images sbom push deploy verify-deploy undeploy overlay proto verify clean
