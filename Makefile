# `make` lists the targets. CLUSTER=NAME selects the cluster. push, images, deploy and undeploy also take REGISTRY= and TAG=;
# demo and cluster-up take NODES= and NETWORK_POLICY=1, demo, deploy and undeploy COMPONENTS=; faults takes FAULT= and OF=. The targets of one service are in service.mk.

SERVICES := go-micro-srv go-micro-web go-micro-client go-micro-config
KUBE     := GOOS= GOARCH= go run -C cluster .
include settings.mk

.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^## /{print "\n" substr($$0, 4)} /^[a-z-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' Makefile

## Try it

demo: ## start a cluster, run the four services on it and show what they do; NODES=3 in three zones
	@CLUSTER='$(CLUSTER)' NODES='$(NODES)' NETWORK_POLICY='$(NETWORK_POLICY)' COMPONENTS='$(COMPONENTS)' ./demo.sh

faults: ## break a demo of three nodes in 13 ways while go-micro's plugin and pod/ call; FAULT=list, FAULT=NAME, OF=orders (12 minutes)
	@[ '$(FAULT)' = list ] || $(KUBE) status -name '$(CLUSTER)' >/dev/null 2>&1 || CLUSTER='$(CLUSTER)' NODES=3 ./demo.sh
	@go run ./test/faults/run -cluster '$(CLUSTER)' -service '$(or $(OF),go-micro-srv)' -fault '$(FAULT)'

monitoring: ## show the metrics of the demo in a browser, with VictoriaMetrics, until Ctrl-C (2 minutes the first time)
	@GOOS= GOARCH= go run -C cluster ./monitoring -name '$(CLUSTER)'

cluster-up: ## start only the cluster, without the services; NODES=3 in three zones; NETWORK_POLICY=1 enforces network policies
	@$(KUBE) up -name '$(CLUSTER)' -nodes '$(NODES)' -network-policy='$(NETWORK_POLICY)'

load: ## build the four images without Docker and load them into the cluster
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s load CLUSTER='$(CLUSTER)' || exit; done

cluster-down: ## stop the cluster and remove everything it created
	@$(KUBE) down -name '$(CLUSTER)'

cluster-%: # any other command of the launcher: make cluster-status, make cluster-node ARGS='ps ax'
	@$(KUBE) $* -name '$(CLUSTER)' $(ARGS)

## Your cluster

push: ## build the four images for amd64 and arm64 and push them to REGISTRY, with their SBOMs
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s push IMAGE='$(REGISTRY)'/$$s:'$(TAG)' || exit; done

images: ## build the four images without Docker and write them to images/*.tar, for clusters without a registry
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s image IMAGE='$(REGISTRY)'/$$s:'$(TAG)' || exit; done

sbom: ## write the SBOM of each program to go-micro-*/sbom.cdx.json
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s sbom || exit; done

deploy: overlay ## apply the manifests to the current kubectl context, with the images in REGISTRY
	kubectl apply -k $(OVERLAY)

verify-deploy: ## check what deploy applied, on the current kubectl context: pods, registrations, answers
	@go run ./test/verify

undeploy: overlay ## delete everything that deploy applied
	kubectl delete -k $(OVERLAY) --ignore-not-found

# kustomize reads image names and components from a file, not from flags. This target writes that file.
OVERLAY := .cluster/deploy
overlay:
	@mkdir -p $(OVERLAY); { printf 'resources: [../../k8s]\ncomponents: ['; for c in $(COMPONENTS); do printf '../../k8s/components/%s,' $$c; done; printf ']\nimages:\n'; \
	for s in $(SERVICES); do printf -- '- {name: 846602483/%s, newName: "%s/%s", newTag: "%s"}\n' $$s '$(REGISTRY)' $$s '$(TAG)'; done; } > $(OVERLAY)/kustomization.yaml

## Work on it

check: ## format, vet, lint and the unit tests that need no Kubernetes (under 2 minutes)
	@test/run.sh check

test: ## everything that CI runs: check, all unit tests, end-to-end tests (about 35 minutes)
	@test/run.sh

lint: ## vet and the linters of .golangci.yml (3 minutes the first time)
	@test/run.sh lint

build: ## build the four programs, static, for Linux
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s build || exit; done

proto: ## generate the Go code of the .proto files
	go run -C proto/gen . proto/greeter.proto
	go run -C proto/gen . test/orders/orders.proto

proto-check: ## fail if the generated Go code differs from what the .proto files generate
	go run -C proto/gen . -verify proto/greeter.proto
	go run -C proto/gen . -verify test/orders/orders.proto

clean: ## stop the clusters of this checkout and delete its build results; make cluster-clean removes other versions from ~/.cache/k8s-micro
	@for d in .cluster/*/cluster.json; do [ ! -e "$$d" ] || $(KUBE) down -name "$$(basename "$$(dirname "$$d")")" || exit; done
	@for s in $(SERVICES); do $(MAKE) --no-print-directory -C $$s clean || exit; done
	rm -rf .cluster images

## Maintain it

vuln: ## run govulncheck on all modules; make test leaves it out, because it needs vuln.go.dev
	@test/vuln.sh

sums: ## write the checksums of the official Kubernetes binaries to cluster/programs/sums.txt; needs dl.k8s.io and github.com
	@$(KUBE) sums

mutants: ## change one expression at a time in pod/internal and count what the tests of its package notice
	@test/mutants/run.sh

compat: ## test the manifests and pod/ with the API servers of the oldest supported versions (6 minutes, the first time 15)
	@test/compat.sh

network-policy-test: ## allowed and refused connections, with the network policies enforced on three nodes of a cluster of its own (2 minutes)
	@E2E_CLUSTER=network-policy E2E_NODES=3 E2E_NETWORK_POLICY=1 go test -vet=off -count=1 -timeout 30m -tags e2e ./test/e2e -run '^TestNetworkPolicy$$' -v

soak: ## call with mutual TLS, on a cluster of its own, until kubelet has renewed every certificate (40 minutes)
	@E2E_CLUSTER=soak go test -vet=off -count=1 -timeout 90m -tags 'e2e soak' ./test/e2e -run '^TestSoak$$' -v

bench: ## compare pod/ with go-micro alone, kratos, go-zero and grpc-go, write test/bench/RESULTS.md (35 minutes)
	@go run ./test/bench

screenshots: ## renew the pictures of the page in media/ (2 minutes)
	@go test -count=1 -tags e2e ./test/e2e -run 'TestPage$$' -args -screenshots

.PHONY: help demo faults monitoring cluster-up load cluster-down push images deploy verify-deploy undeploy overlay check test lint build proto proto-check clean vuln sums mutants compat network-policy-test soak bench screenshots sbom
