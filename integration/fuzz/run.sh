#!/bin/sh
# Runs each fuzzer, or those named behind the first argument, for that many seconds of its own processor time. What it finds is in
# integration/fuzz/libfuzzer/artifacts; what it learned stays in target/fuzz/corpus, beside the seeds in integration/fuzz/corpus.
set -eu
seconds=${1:?seconds of processor time}
shift
cd "$(dirname "$0")/libfuzzer"
root=$(cd ../../.. && pwd)
[ $# -gt 0 ] || set -- $(cd targets && ls | sed 's/\.rs$//')
# The product's own dependencies, and libFuzzer's beside them.
cp "$root/Cargo.lock" Cargo.lock
for target in "$@"; do
	cargo +nightly fuzz build --fuzz-dir . --target-dir "$root/target/fuzz" "$target"
done

# Seconds of processor time that a process had.
processor() {
	awk -v hertz="$(getconf CLK_TCK)" '{ print int(($14 + $15) / hertz) }' "/proc/$1/stat" 2>/dev/null || echo "$seconds"
}

for target in "$@"; do
	learned=$root/target/fuzz/corpus/$target
	artifacts=artifacts/$target
	mkdir -p "$learned" "$artifacts"
	log=$root/target/fuzz/$target.log
	"$root"/target/fuzz/*/release/"$target" -artifact_prefix="$artifacts/" -max_len=4096 -timeout=60 -rss_limit_mb=1024 \
		-print_final_stats=1 -use_value_profile=0 "$learned" "../corpus/$target" >"$log" 2>&1 &
	fuzzer=$!
	while kill -0 "$fuzzer" 2>/dev/null && [ "$(processor "$fuzzer")" -lt "$seconds" ]; do
		sleep 1
	done
	spent=$(processor "$fuzzer")
	# libFuzzer ends well and says its numbers.
	kill -TERM "$fuzzer" 2>/dev/null || true
	wait "$fuzzer" || true
	if ls "$artifacts" | grep -q .; then
		echo "fuzz: $target: a finding after $spent s of processor time: $(ls "$artifacts" | head -n 1); see $log" >&2
		exit 1
	fi
	grep -q 'stat::number_of_executed_units' "$log" || { echo "fuzz: $target ended by itself: see $log" >&2; exit 1; }
	echo "fuzz: $target: nothing in $spent s of processor time; $(grep -E '#[0-9]+.*cov:' "$log" | tail -n 1)"
done
