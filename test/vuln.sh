#!/usr/bin/env bash
# Asks govulncheck for known vulnerabilities that this project's code reaches, and
# fails for any but those that SECURITY.md names. It needs vuln.go.dev, or
# -db=file:///a/copy of it.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for module in . cluster proto/gen third_party/etcd; do
	code=0
	out=$(go tool -modfile="$PWD/test/tools/go.mod" govulncheck -C "$module" "$@" ./... 2>&1) || code=$?
	if ((code != 0 && code != 3)); then # 3: it found some
		printf 'checking module "%s" for vulnerabilities: nothing is known: %s\n' "$module" "$out" >&2
		exit 1
	fi
	found=$(sed -n 's/^Vulnerability #[0-9]*: //p' <<<"$out")
	new=$(for id in $found; do grep -qw -- "$id" SECURITY.md || printf '%s ' "$id"; done)
	printf 'module "%s": reached: %s\n' "$module" "${found:-none}"
	if [[ -n $new ]]; then
		printf '%s\nchecking module "%s" for vulnerabilities: %s: raise what has them, or give the reason in SECURITY.md\n' "$out" "$module" "$new" >&2
		status=1
	fi
done
exit "$status"
