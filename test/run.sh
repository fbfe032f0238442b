#!/usr/bin/env bash
# Everything CI checks: what tells soonest comes first. Needs Go, gcc (for the
# race detector) and Linux; the rest it builds or fetches itself.
set -euo pipefail
cd "$(dirname "$0")/.."
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
for module in . cluster proto/gen third_party/etcd; do
	go vet -C "$module" ./...
done
go vet -tags e2e ./test/...

step 'Generated code'
go run -C proto/gen . -verify

step 'Kubernetes, for the tests that follow (the first time: up to 10 minutes on two cores)'
go run -C cluster . build

step 'Unit tests, those of pod/ against a real API server (about 3 minutes)'
go test -race ./...
go test -C third_party/etcd -race ./...

step 'The cluster: starting, stopping, what it leaves (about 1 minute)'
go test -C cluster -race ./...

step 'End to end: the walk-through and the faults, the page, on a cluster of its own (about 8 minutes)'
go test -race -count=1 -v -timeout 20m -tags e2e ./test/e2e

step 'All passed'
