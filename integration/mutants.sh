#!/bin/sh
# A random sample of mutants of effective, compile and diff, each against the pure tests. Survivors are explained in docs/testing.md.
set -eu
sample=${1:-300}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
set -- --package flatfell-rules --features sim \
	--file 'rules/src/effective*' --file 'rules/src/effective/**' --file 'rules/src/compile*' --file 'rules/src/compile/**' --file 'rules/src/diff*' --file 'rules/src/diff/**'
cargo mutants --list "$@" >"$work/all"
total=$(wc -l <"$work/all")
shards=$(((total + sample - 1) / sample))
[ "$shards" -gt 0 ] || shards=1
echo "mutants: $total in all, one shard of $shards"
cargo mutants "$@" --shard "0/$shards" --jobs 2
