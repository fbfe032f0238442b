#!/usr/bin/env bash
# Runs the tests that CI runs (`make test`), or with an argument a part of them: "check", those that need no Kubernetes
# (`make check`), or "lint". Needs Linux, Go and, except for check and lint, gcc for the race detector; everything else
# is built or downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
# The same flags as in settings.mk, so that all go commands share compiled packages. Only
# the race detector needs cgo; the programs that a test starts do not.
export GOFLAGS=-trimpath CGO_ENABLED=0

step() { # arguments: what the step checks, and how long it usually takes on two cores
	printf '\n== %s. Usually %s; %d s since the start.\n' "$1" "$2" "$SECONDS"
}
modules() { # argument: a word of test/modules; prints the modules that have it, or all without an argument
	awk -v use="${1:-}" '/^[^#]/ && ($0 " ") ~ (use " ") {print $1}' test/modules
}

listed() {
	step 'Modules: test/modules lists all of them' '1 s'
	diff <(git ls-files --cached --others --exclude-standard go.mod '*/go.mod' | sed 's|/*go.mod$||; s|^$|.|' | sort) <(modules | sort) ||
		{ echo 'comparing the go.mod files (<) with test/modules (>): they differ; add or remove the lines above there' >&2; exit 1; }
}

format() {
	step 'Format: every Go file is formatted with gofmt' '1 s'
	local unformatted
	unformatted=$(git ls-files -z --cached --others --exclude-standard '*.go' | while IFS= read -r -d '' f; do [[ ! -e $f ]] || printf '%s\0' "$f"; done | xargs -0 gofmt -l)
	if [[ -n $unformatted ]]; then
		printf 'checking the format: gofmt would change these files, run gofmt -w on them:\n%s\n' "$unformatted" >&2
		exit 1
	fi
}

lint() {
	step 'Lint: go vet and the linters of .golangci.yml' '20 s, the first time 9 minutes'
	local linter module
	linter=$(nice go tool -modfile=test/tools/go.mod -n golangci-lint)
	for module in $(modules lint); do
		(cd "$module" && nice "$linter" run --build-tags e2e,soak ./...)
	done
}

other_systems() {
	step 'Other systems: the programs, and all packages that a service imports, compile for Windows and macOS' '1 s, the first time 10 minutes'
	for system in windows darwin; do
		GOOS=$system nice go build ./go-micro-srv ./go-micro-web ./go-micro-client ./go-micro-config ./pod ./pod/configwatch ./pod/debugtrace ./pod/metrics ./pod/tracing ./test/process
	done
}

install() { # argument: name of the program and of Debian's package
	if ((EUID)) || ! command -v apt-get >/dev/null; then
		printf 'looking for %s: it is not in PATH; install it, on Debian with: apt-get install %s\n' "$1" "$1" >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$1"
}

scripts() {
	step 'Scripts: shellcheck' '1 s, the first time 20 s to install it'
	command -v shellcheck || install shellcheck
	git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run | xargs -0 shellcheck
}

generated() {
	step 'Generated code is what the .proto files generate' '1 s'
	make --no-print-directory proto-check
}

# gotestsum ends with the output of the tests that failed, so that nobody has to search for it. Lint has vetted the tests.
build_gotestsum() { gotestsum=$(go tool -modfile=test/tools/go.mod -n gotestsum); }
test_module() { # arguments: folder of the module, format of gotestsum, packages, flags of go test
	local again=() events=${reruns:-}/$BASHPID.events
	if [[ ${reruns:-} ]]; then
		again=(--rerun-fails=1 --rerun-fails-max-failures=3 --rerun-fails-run-root-test --rerun-fails-abort-on-data-race
			--rerun-fails-report "$(mktemp -p "$reruns" report.XXX)" --jsonfile-timing-events "$events")
	fi
	(cd "$1" && "$gotestsum" --format "$2" --format-hide-empty-pkg --format-icons text --hide-summary skipped --packages "$3" "${again[@]}" -- -vet=off "${@:4}") || return
	# gotestsum runs no test again if none has failed, and then succeeds.
	if [[ ${reruns:-} ]] && ! awk -F'"Package":"' '/"Action":"fail"/ {p = $2; sub(/".*/, "", p); if (/"Test":/) tests[p]++; else {if (!tests[p]) {print p; bad = 1}; tests[p] = 0}} END {exit bad}' "$events"; then
		echo 'running the tests of the packages above: no test has failed, but TestMain, such as by a leaked goroutine' >&2
		return 1
	fi
}
race() { CGO_ENABLED=1 test_module "$@" -race -exec 'env CGO_ENABLED=0'; }

case ${1:-} in
lint)
	lint
	exit
	;;
check)
	listed
	format
	lint
	scripts
	generated
	step 'Unit tests that need no API server and no cluster' '30 s, the first time 3 minutes'
	build_gotestsum
	for module in $(modules unit); do
		test_module "$module" pkgname ./... -short
	done
	printf '\nNot run: the skipped tests, which need an API server, a cluster or a module cache of their own, and the end-to-end tests. Run everything with: make test\n'
	printf '\n== Passed after %d s\n' "$SECONDS"
	exit
	;;
esac

step 'A browser for the tests of the page of go-micro-web' '1 s, the first time 1 minute to install it'
command -v chromium google-chrome chromium-browser || install chromium

step 'Docker or Podman for the test that compares their images with ours' '1 s, the first time 1 minute to install Podman'
{ docker version || podman version; } >/dev/null 2>&1 || install podman

listed
format
scripts
build_gotestsum

# Most tests wait for most of their time, so two functions run at once. The output of the first appears as it comes, that
# of the second when it has finished. If one fails, the other is stopped.
log=$(mktemp)
# A test that fails is run once more, alone: two cores are not always enough for the two functions. Its failure is told at
# the end. A data race, a panic, a leak, or more than three failures are final.
reruns=$(mktemp -d)
# Nothing that they have started outlives this script. Processes of a session of their own, such as the supervisor of a
# cluster, are found by this variable in their environment.
export K8S_MICRO_TEST_RUN=$$
end() {
	local all pids state name signal=TERM
	jobs -p | xargs -r kill 2>/dev/null || true
	for i in {1..300}; do
		all=(/proc/[0-9]*/environ) # before grep starts
		mapfile -t pids < <(grep -lszxF "K8S_MICRO_TEST_RUN=$$" "${all[@]}" | cut -d / -f 3)
		((${#pids[@]})) || break
		((i < 250)) || signal=KILL
		kill "-$signal" "${pids[@]}" 2>/dev/null || true
		sleep 0.1
	done
	unset K8S_MICRO_TEST_RUN
	for state in .cluster/*/cluster.json; do # what the ended clusters left; others are running
		name=$(basename "$(dirname "$state")")
		[[ ! -e $state ]] || go run -C cluster . status -name "$name" >/dev/null 2>&1 || go run -C cluster . down -name "$name"
	done
	rm -rf "$log" "$reruns"
}
trap end EXIT
together() {
	printf 'The output of "%s" goes to %s until it has finished.\n' "$2" "$log"
	"$1" </dev/null &
	"$2" </dev/null >"$log" 2>&1 &
	local second=$! ended failed
	for _ in first second; do
		failed=0
		wait -n -p ended || failed=$?
		[[ $ended != "$second" ]] || cat "$log"
		((failed == 0)) || exit "$failed"
	done
}

kubernetes() {
	step 'Kubernetes for the tests' '1 s, the first time 5 to 10 minutes'
	go run -C cluster . build # a second call waits for the first
}

unit_tests() {
	kubernetes
	step 'Unit tests with the race detector; those of pod/ and of the manifests use a real API server, those of cluster/ start and stop clusters' '11 minutes'
	local module flags run
	for module in $(modules unit); do
		run=test_module flags=(-timeout 30m)
		! modules race | grep -Fxq "$module" || run=race
		! modules fresh | grep -Fxq "$module" || flags+=(-count=1)
		$run "$module" pkgname ./... "${flags[@]}"
	done
}

downloads() {
	step 'Downloads: the modules match go.sum' '10 s'
	local module
	for module in $(modules); do
		go mod -C "$module" verify
	done
}

# -count=1 disables go's test cache, which does not notice changes of the host and of files outside the module.
e2e() { # arguments: name of the cluster, flags of go test
	E2E_CLUSTER=$1 race . standard-verbose ./test/e2e -count=1 -timeout 45m -tags e2e "${@:2}"
}
documents='^Test(README|Walkthrough|Admission|IPv6Cluster|DeployWithoutRegistry|VerifyDeploy|Laptop)$' faults='^Test(Faults|FaultsInterrupted|Follow|Nodes|Zones)$' policies='^TestNetworkPolicy$'
static_checks_and_documents() {
	lint
	other_systems
	generated
	downloads
	kubernetes
	step 'End to end: the documents, the walk-through, deployments, IPv6 and programs on a laptop' '12 minutes'
	e2e e2e -run "$documents"
}
end_to_end_faults() { E2E_NODES=3 e2e e2e-faults -run "$faults"; }
end_to_end() {
	E2E_NODES=3 E2E_NETWORK_POLICY=1 e2e e2e-policies -run "$policies"
	e2e e2e -skip "$documents|$faults|$policies"
}

together unit_tests static_checks_and_documents
step 'End to end: faults; rollouts, attacks, identities, configuration and the page' '12 minutes'
together end_to_end end_to_end_faults

if grep -hs . "$reruns"/report.*; then
	echo 'These tests have failed once, and passed when they ran again, alone: mend them.'
fi
printf '\n== Passed after %d s\n' "$SECONDS"
