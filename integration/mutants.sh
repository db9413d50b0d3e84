#!/bin/sh
# A random sample of the mutants of effective, compile and diff, each against the pure tests. Survivors are explained in
# docs/testing.md. The first argument is the size of the sample, the others go to cargo-mutants (--list, --jobs 2 ...).
set -eu
sample=${1:-300}
[ $# -eq 0 ] || shift
FLATFELL_SEED=${FLATFELL_SEED:-1}
# Few cases each: what a mutant breaks shows in the first clusters, or in none.
export FLATFELL_SEED FLATFELL_CLUSTERS="${FLATFELL_CLUSTERS:-150}" PROPTEST_CASES="${PROPTEST_CASES:-100}"
# Those that ask what effective, compile and diff decide; the others compare the fake kernel and the text form with nft.
tests='--lib --test agree --test change --test diff --test tracer'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mutants() {
	cargo mutants --package flatfell-rules --features sim \
		--file 'rules/src/effective/*.rs' --file 'rules/src/compile.rs' --file 'rules/src/compile/*.rs' \
		--file 'rules/src/diff/*.rs' --profile mutants --cap-lints true --timeout 180 "$@" -- $tests
}

mutants --list >"$work/all"
# The same seed gives the same sample, on every machine.
yes "$FLATFELL_SEED" 2>/dev/null | head -c 1000000 >"$work/random"
shuf -n "$sample" --random-source="$work/random" "$work/all" | sed 's/[][\.*^$+?(){}|&~#-]/\\&/g; s/^/^/; s/$/$/' >"$work/sample"
# cargo-mutants does not apply the expression to deleted fields: the few of them are tested each time.
echo "mutants: $(wc -l <"$work/sample") of $(wc -l <"$work/all"), seed $FLATFELL_SEED"
paste -sd '|' "$work/sample" >"$work/expression"
mutants --re "$(cat "$work/expression")" "$@"
