#!/usr/bin/env bash
# Everything CI checks: what tells soonest comes first. Needs Go, gcc (for the
# race detector) and Linux; the rest it builds or fetches itself.
set -euo pipefail
cd "$(dirname "$0")/.."
# The flags of the Makefile: all go commands share compiled packages. Only the race
# detector needs cgo, and what a test starts does not.
export GOFLAGS=-trimpath CGO_ENABLED=0
race() { CGO_ENABLED=1 go test "$@" -race -exec 'env CGO_ENABLED=0'; }
step() { printf '\n== %s (%d s so far)\n' "$*" "$SECONDS"; }

step 'Formatting'
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
if [[ -n $unformatted ]]; then
	printf 'not formatted, run gofmt -w on:\n%s\n' "$unformatted" >&2
	exit 1
fi

step 'A browser, for the page of go-micro-web'
if ! command -v chromium google-chrome chromium-browser; then
	if ((EUID)) || ! command -v apt-get >/dev/null; then
		echo 'looking for a browser: neither chromium nor google-chrome is in PATH; install one, on Debian `apt-get install chromium`' >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium
fi

step 'Vet'
for module in . cluster proto/gen test/psa third_party/etcd; do
	go vet -C "$module" ./...
done
go vet -tags e2e ./test/...

step 'Linters (the first time about 3 minutes, to build them)'
make --no-print-directory lint

step 'Generated code'
go run -C proto/gen . -verify

step 'Kubernetes, for the tests that follow (the first time: up to 10 minutes on two cores)'
go run -C cluster . build

step 'Modules: what was downloaded is what go.sum says'
for module in . cluster cluster/kube proto/gen test/psa test/tools third_party/etcd; do
	go mod -C "$module" verify
done

step 'Unit tests, those of pod/ and the manifests against a real API server (about 4 minutes)'
race ./...
race -C third_party/etcd ./...
go test -C test/psa -count=1 ./... # it reads the manifests, which the test cache does not see

# Not from the cache: these look at the host, and at files above their module.
step 'The cluster: starting, stopping, what it leaves; the images, from two checkouts (about 2 minutes)'
race -C cluster -count=1 ./...

step 'End to end: the README, the walk-through, the faults and the page on clusters of their own (about 14 minutes)'
race -count=1 -v -timeout 40m -tags e2e ./test/e2e

step 'All passed'
