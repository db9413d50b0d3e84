#!/bin/sh
# Builds the CNI plugin, target/release/flatfell-cni, without any library of this machine: the runtime of a node starts it there,
# whatever libc that node has.
set -eu

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
cargo rustc --locked --release --package flatfell-cni --bin flatfell-cni -- -C target-feature=+crt-static
if ldd "$target/release/flatfell-cni" >/dev/null 2>&1 && ldd "$target/release/flatfell-cni" | grep -q '=>'; then
	echo "plugin: target/release/flatfell-cni needs libraries of this machine" >&2
	exit 1
fi
