#!/usr/bin/env bash
# Runs the tests that CI runs (`make test`), or with the argument "check" only
# those that need no Kubernetes (`make check`). Needs Linux, Go and, except for
# check, gcc for the race detector; everything else is built or downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
# The same flags as in settings.mk, so that all go commands share compiled packages. Only
# the race detector needs cgo; the programs that a test starts do not.
export GOFLAGS=-trimpath CGO_ENABLED=0
# gotestsum ends with the output of the tests that failed, so that nobody has to search for it.
build_gotestsum() { gotestsum=$(go tool -modfile=test/tools/go.mod -n gotestsum); }
test_module() { # arguments: folder of the module, format of gotestsum, flags of go test
	(cd "$1" && "$gotestsum" --format "$2" --format-hide-empty-pkg --format-icons text --hide-summary skipped -- "${@:3}")
}
race() { CGO_ENABLED=1 test_module "$@" -race -exec 'env CGO_ENABLED=0'; }

step() { # arguments: what the step checks, and how long it usually takes on two cores
	printf '\n== %s. Usually %s; %d s since the start.\n' "$1" "$2" "$SECONDS"
}
modules='. cluster proto/gen test/bench/peers test/isolation third_party/etcd third_party/etcd-client'

format() {
	step 'Format: every Go file is formatted with gofmt' '1 s'
	local unformatted
	unformatted=$(git ls-files -z --cached --others --exclude-standard '*.go' | while IFS= read -r -d '' f; do [[ ! -e $f ]] || printf '%s\0' "$f"; done | xargs -0 gofmt -l)
	if [[ -n $unformatted ]]; then
		printf 'checking the format: gofmt would change these files, run gofmt -w on them:\n%s\n' "$unformatted" >&2
		exit 1
	fi
}

vet() {
	step 'Vet: mistakes that the compiler accepts' '10 s, the first time 2 minutes'
	for module in $modules; do
		go vet -C "$module" ./...
	done
	go vet -tags e2e ./test/...
}

lint() {
	step 'Lint: the linters of .golangci.yml' '20 s, the first time 3 minutes to build them'
	make --no-print-directory lint
}

scripts() {
	step 'Scripts: shellcheck' '1 s, the first time 20 s to install it'
	if ! command -v shellcheck; then
		if ((EUID)) || ! command -v apt-get >/dev/null; then
			echo 'looking for shellcheck: it is not in PATH; install it, on Debian with: apt-get install shellcheck' >&2
			exit 1
		fi
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends shellcheck
	fi
	git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run | xargs -0 shellcheck
}

generated() {
	step 'Generated code: proto/*.go is what proto/greeter.proto generates' '1 s'
	go run -C proto/gen . -verify
}

if [[ ${1:-} == check ]]; then
	format
	vet
	lint
	scripts
	generated
	step 'Unit tests that need no API server and no cluster' '30 s, the first time 3 minutes'
	build_gotestsum
	for module in . cluster third_party/etcd-client test/isolation; do
		test_module "$module" pkgname -short ./...
	done
	printf '\nNot run: the skipped tests, which need an API server, a cluster or a module cache of their own, and the end-to-end tests. Run everything with: make test\n'
	printf '\n== Passed after %d s\n' "$SECONDS"
	exit
fi

step 'A browser for the tests of the page of go-micro-web' '1 s, the first time 1 minute to install it'
if ! command -v chromium google-chrome chromium-browser; then
	if ((EUID)) || ! command -v apt-get >/dev/null; then
		echo 'looking for a browser: neither chromium nor google-chrome is in PATH; install one, on Debian with: apt-get install chromium' >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium
fi

step 'Docker or Podman for the test that compares their images with ours' '1 s, the first time 1 minute to install Podman'
if ! { docker version || podman version; } >/dev/null 2>&1; then
	if ((EUID)) || ! command -v apt-get >/dev/null; then
		echo 'looking for Docker or Podman: none answers; start Docker or install Podman, on Debian with: apt-get install podman' >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends podman
fi

format

# Kubernetes is built in the background while these checks run, because none of them measures time.
build_log=$(mktemp)
go run -C cluster . build >"$build_log" 2>&1 &
build=$!
trap 'kill "$build" 2>/dev/null || true; rm -f "$build_log"' EXIT

vet
lint
scripts
generated

step 'Modules: the downloaded modules match go.sum' '10 s'
for module in $modules cluster/kube test/tools; do
	go mod -C "$module" verify
done

step 'Kubernetes for the following tests, built in the background until now' '1 s, the first time 10 minutes'
if ! wait "$build"; then
	cat "$build_log" >&2
	exit 1
fi
cat "$build_log"
trap 'rm -f "$build_log"' EXIT

step 'Unit tests with the race detector; those of pod/ and of the manifests use a real API server' '4 minutes'
build_gotestsum
race . pkgname -timeout 30m ./...
race third_party/etcd-client pkgname ./...
test_module test/isolation pkgname -count=1 ./... # -count=1 disables the test cache, which does not notice changed manifests

# These tests mostly wait, so two programs run at the same time, each with clusters of its own. -count=1 disables the
# test cache, which does not notice changes of the host and of files outside the module.
e2e() { # arguments: name of the cluster, flags of go test
	E2E_CLUSTER=$1 race . standard-verbose -count=1 -timeout 45m -tags e2e ./test/e2e "${@:2}"
}
documents='^Test(README|Walkthrough|Admission|IPv6Cluster)$' faults='^Test(Faults.*|Follow)$'
together() { # arguments: command for the background, whose output appears when it has finished; command
	local log background failed=0
	log=$(mktemp)
	$1 >"$log" 2>&1 &
	background=$!
	trap 'kill "$background" 2>/dev/null || true; rm -f "$log"' EXIT
	printf 'The output of "%s" goes to %s until it has finished.\n' "$1" "$log"
	"${@:2}" || failed=$?
	if wait "$background"; then
		((failed)) || cat "$log" # the failure of the other command stays the last output
	else
		failed=1
		cat "$log"
	fi
	rm -f "$log"
	trap - EXIT
	return "$failed"
}
launcher() { race cluster pkgname -timeout 30m -count=1 ./...; }
end_to_end_faults() { e2e e2e-faults -run "$faults"; }

step 'The documents, the walk-through and IPv6 on clusters of their own; the launcher: start, stop, clean-up of the host, the same images from two checkouts' '4 minutes'
together launcher e2e e2e -run "$documents"
step 'End to end: faults; rollouts, attacks, configuration and the page' '8 minutes'
together end_to_end_faults e2e e2e -skip "$documents|$faults"

printf '\n== Passed after %d s\n' "$SECONDS"
