#!/usr/bin/env bash
# Runs govulncheck on every module: `make vuln`, and every week .github/workflows/vuln.yml. Fails for each known
# vulnerability that the code reaches and SECURITY.md does not list. It downloads the database from vuln.go.dev;
# -db=file:///PATH uses a copy. To read Kubernetes from source takes over nine minutes, so its program is built and read, and so is
# VictoriaMetrics.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS=-trimpath CGO_ENABLED=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
modules() { awk -v use="$1" '/^[^#]/ && ($0 " ") ~ (" " use " ") {print $1}' test/modules; }
check() { # arguments: module, arguments of govulncheck
	local module=$1 code=0 out found new
	out=$(go tool -modfile="$PWD/test/tools/go.mod" govulncheck "${@:2}" 2>&1) || code=$?
	if ((code != 0 && code != 3)); then # 3: govulncheck found vulnerabilities
		printf 'checking module "%s" for vulnerabilities: govulncheck failed: %s\n' "$module" "$out" >&2
		exit 1
	fi
	found=$(sed -n 's/^Vulnerability #[0-9]*: //p' <<<"$out")
	new=$(for id in $found; do grep -qw -- "$id" SECURITY.md || printf '%s ' "$id"; done)
	printf 'module "%s": reached vulnerabilities: %s\n' "$module" "${found:-none}"
	if [[ -n $new ]]; then
		printf '%s\nchecking module "%s" for vulnerabilities: %s: upgrade the affected dependency, or list the reason in SECURITY.md\n' "$out" "$module" "$new" >&2
		status=1
	fi
}
for module in $(modules vuln); do
	check "$module" -C "$module" "$@" ./...
done
for module in $(modules vuln-program); do
	# With symbols, which govulncheck reads. The other flags are the launcher's, so that no package is compiled twice.
	main=$(go list -C "$module" tool 2>/dev/null) # of a module without code
	go build -C "$module" -buildvcs=false -gcflags='all=-dwarf=false -l' -o "$work/program" "${main:-.}"
	check "$module" -mode=binary "$@" "$work/program"
done
exit "$status"
