#!/usr/bin/env bash
# Runs the tests of the manifests, of the registry, of the ConfigMap reader and of calls from a laptop against the API
# servers of older versions of Kubernetes (`make compat`): the oldest version that the documents claim, and the oldest minor
# version that upstream supports. It builds each kube-apiserver once, 5 minutes on two cores, and keeps it in
# the cache. make test leaves it out. Arguments: other versions to try, such as v1.32.11.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS=-trimpath CGO_ENABLED=0
versions=(v1.30.14 v1.35.4)
(($# == 0)) || versions=("$@")

build() { # version, path of the result
	local dir mod
	dir=$(mktemp -d)
	# shellcheck disable=SC2064 # dir is local
	trap "rm -rf '$dir'" EXIT # also after an error and Ctrl-C
	mod=$(go mod download -json "k8s.io/kubernetes@$1" | sed -n 's/^\t"GoMod": "\(.*\)",\?$/\1/p')
	cat >"$dir/main.go" <<'GO'
package main

import (
	"io"
	"os"
	"strconv"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// The launcher starts this program as it starts the binary of cluster/kube.
func main() {
	if fd, err := strconv.Atoi(os.Getenv("KUBE_EXIT_WITH_FD")); err == nil {
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(uintptr(fd), "pipe"))
			os.Exit(1)
		}()
	}
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
GO
	# Kubernetes replaces its staging modules by directories, which the module proxy does not have. The go line is
	# that of Kubernetes, because it selects the behaviour of the runtime.
	{
		printf 'module compat\n\nrequire k8s.io/kubernetes %s\n' "$1"
		grep '^go ' "$mod"
		sed -n "s|^\t\(k8s.io/[a-z-]*\) => ./staging/.*|replace \1 => \1 v0.${1#v1.}|p" "$mod"
	} >"$dir/go.mod"
	local minor=${1#v1.} v='-X k8s.io/component-base/version.git'
	(
		cd "$dir"
		go mod tidy >tidy.log 2>&1 || { cat tidy.log >&2; exit 1; }
		go build -gcflags='all=-dwarf=false -l' -ldflags="-s -w ${v}Version=$1 ${v}Major=1 ${v}Minor=${minor%%.*} ${v}TreeState=clean" -o kube-apiserver .
	)
	mkdir -p "$(dirname "$2")"
	mv "$dir/kube-apiserver" "$2"
	rm -rf "$dir"
}

for version in "${versions[@]}"; do
	binary=${XDG_CACHE_HOME:-$HOME/.cache}/k8s-micro/kube-apiserver-$version-$(go env GOARCH)/kube-apiserver
	if [[ ! -e $binary ]]; then
		printf '\n== Building kube-apiserver %s, once: 5 minutes on two cores\n' "$version"
		build "$version" "$binary"
	fi
	printf '\n== Kubernetes %s\n' "$version"
	export KUBE_APISERVER=$binary KUBE_APISERVER_VERSION=$version
	# Every manifest, strictly; registration and its refusal by the admission policy; Pod Security; rights.
	go test -count=1 ./test/manifests
	# Register, discover and deregister, with pod/ and with the plugin; restart of the API server; rotated tokens;
	# calls through the API server.
	go test -count=1 ./pod -run '^(TestRegistry|TestGetService|TestRemovedMetadata|TestPodReplaced|TestRegistrationIsRetried|TestDeregister|TestTokenRotation|TestErrorsNameMissingVerb|TestCallsContinue|TestClientCallsThroughRealAPIServer)'
	go test -count=1 ./pod/configwatch -run '^(TestFollow|TestValues|TestFailedFirstRead)'
done
printf '\n== Passed with %s\n' "${versions[*]}"
