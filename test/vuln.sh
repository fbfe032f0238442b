#!/usr/bin/env bash
# Runs govulncheck on every module. Fails for each known vulnerability that the
# code reaches and SECURITY.md does not list. It downloads the database from
# vuln.go.dev; -db=file:///PATH uses a copy.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
mapfile -t modules < <(awk '/^[^#]/ && / vuln$/ {print $1}' test/modules)
for module in "${modules[@]}"; do
	code=0
	out=$(go tool -modfile="$PWD/test/tools/go.mod" govulncheck -C "$module" "$@" ./... 2>&1) || code=$?
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
done
exit "$status"
