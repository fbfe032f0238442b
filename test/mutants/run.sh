#!/usr/bin/env bash
# Changes one expression at a time in each package of pod/internal and runs the package's own tests that need no API
# server (`make mutants`). A change that no test notices survives. Fails if less than 75 % of a package's changes are
# noticed, not counting those that the file survivors explains. Takes a minute for each 20 changes on two cores; with
# arguments, such as balancer, only these packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
export GOFLAGS='-trimpath -short' GOWORK=off CGO_ENABLED=0
want=75 dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/checkout" "$dir/tmp"
gremlins=$(GOFLAGS=-trimpath go tool -modfile=test/mutants/go.mod -n gremlins)
survivors=$PWD/test/mutants/survivors

# gremlins copies the whole directory for each worker, so it gets one without the clusters and builds of this checkout.
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [[ ! -f $f ]] || printf '%s\0' "$f"; done | xargs -0 cp --parents -t "$dir/checkout"
cd "$dir/checkout"
export TMPDIR=$dir/tmp
packages=("$@")
if (($# == 0)); then
	for package in pod/internal/*/; do
		package=$(basename "$package")
		[[ $package == kubetest ]] || packages+=("$package") # starts the API server for the tests of others
	done
fi

# unreachable tells whether gremlins cannot try a place: a declaration outside functions or of a constant, the condition
# of a case, whose coverage go does not count, or the & that takes an address, which gremlins takes for an operation on bits.
unreachable() { # file, line, column, code
	[[ $4 != 'const '* && $4 != 'case '* ]] || return 0
	[[ $(sed -n "$2p" "$1" | cut -c "$3-$(($3 + 1))") != '&'[A-Za-z] ]] || return 0
	awk -v line="$2" '/^func /{inside = !/}$/} NR == line {exit !inside ? 0 : 1} /^}/{inside = 0}' "$1"
}

failed=() used=$dir/used
touch "$used"
for package in "${packages[@]}"; do
	killed=0 survived=0 explained=0
	printf '\n== %s\n' "$package"
	"$gremlins" unleash --invert-logical --invert-loopctrl --invert-assignments --invert-bitwise --invert-bwassign \
		--remove-self-assignments --timeout-coefficient 8 "./pod/internal/$package" >"$dir/out" 2>&1 || { cat "$dir/out" >&2; exit 1; }
	while IFS= read -r line; do
		[[ $line =~ ^\ *(KILLED|TIMED\ OUT|LIVED|NOT\ COVERED)\ ([A-Z_]+)\ at\ ([^:]+):([0-9]+):([0-9]+) ]] || continue
		status=${BASH_REMATCH[1]} kind=${BASH_REMATCH[2]} file=pod/internal/$package/${BASH_REMATCH[3]} number=${BASH_REMATCH[4]} column=${BASH_REMATCH[5]}
		if [[ $status == KILLED || $status == 'TIMED OUT' ]]; then
			killed=$((killed + 1))
			continue
		fi
		code=$(sed -n "${number}s/^[[:space:]]*//p" "$file")
		[[ $status != 'NOT COVERED' ]] || ! unreachable "$file" "$number" "$column" "$code" || continue
		if grep -Fxq "$file $kind: $code" "$survivors"; then
			explained=$((explained + 1))
			printf '%s %s: %s\n' "$file" "$kind" "$code" >>"$used"
			continue
		fi
		survived=$((survived + 1))
		printf '%s:%s %s, %s: %s\n' "$file" "$number" "$kind" "${status,,}" "$code"
	done <"$dir/out"
	grep -q '^Killed: ' "$dir/out" || { cat "$dir/out" >&2; exit 1; }
	share=$((killed + survived == 0 ? 100 : 100 * killed / (killed + survived)))
	printf '%s: %d %% noticed: %d noticed, %d survived, %d explained\n' "$package" "$share" "$killed" "$survived" "$explained" | tee -a "$dir/summary"
	((share >= want)) || failed+=("$package")
	grep -F "pod/internal/$package/" "$survivors" | grep -Fxvf "$used" | sed 's/^/in test\/mutants\/survivors, but noticed or gone: /' || true
done
printf '\n== Summary\n'
cat "$dir/summary"
if ((${#failed[@]})); then
	printf 'testing the tests of %s: less than %d %% of the changes are noticed; add tests, or explain in test/mutants/survivors why a change has no effect\n' "${failed[*]}" "$want" >&2
	exit 1
fi
