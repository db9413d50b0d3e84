#!/bin/sh
# Lays out the image's file system: the stripped binary, the libraries it loads, the CNI plugin beside it, and the licence
# texts of all of it.
#
#   deploy/rootfs.sh BINARY ROOT
#
# The plugin is the file flatfell-cni beside BINARY.
#
# For the architecture of this machine, on Debian: libraries by ldd, their licences by dpkg. No shell gets in.
set -eu

binary=$1 root=$2
here=$(cd "$(dirname "$0")/.." && pwd)
docs=$root/usr/share/doc

mkdir -p "$root/etc" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$docs/flatfell/texts"
strip -o "$root/flatfell" "$binary"
chmod 0755 "$root/flatfell"
strip -o "$root/flatfell-cni" "$(dirname "$binary")/flatfell-cni"
chmod 0755 "$root/flatfell-cni"

# The Debian package that a library is of, under its path before or after the merge of /lib into /usr/lib.
package_of() {
	for path in "$1" "$(readlink -f "$1")" "/usr$1"; do
		if owner=$(dpkg -S "$path" 2>/dev/null); then
			echo "$owner" | head -n 1 | cut -d: -f1
			return
		fi
	done
	echo "rootfs: no Debian package holds $1: its licence is not known" >&2
	return 1
}

# Lines are `libx.so.1 => /path/libx.so.1 (0x…)`, `/path/ld.so (0x…)` and the kernel's own, which has no path.
libraries=$(ldd "$binary" | awk '/not found/ { exit 1 } $2 == "=>" { print $3 } $1 ~ "^/" { print $1 }')
for library in $libraries; do
	install -D -m 0755 "$(readlink -f "$library")" "$root$library"
	package=$(package_of "$library")
	install -D -m 0644 "/usr/share/doc/$package/copyright" "$docs/$package/copyright"
done

install -m 0644 "$here/LICENSE" "$here/NOTICE" "$docs/flatfell/"
# The binary links libnftnl and so is under the GPL, version 3 (NOTICE).
for text in GPL-3 GPL-2 LGPL-2.1; do
	install -D -m 0644 "/usr/share/common-licenses/$text" "$root/usr/share/common-licenses/$text"
done

# What cargo linked in: each crate, its licence and the names of its texts, equal texts once.
cd "$here"
# For this machine alone: other systems' crates are not in the binary.
host=$(rustc -vV | sed -n 's/^host: //p')
manifests=$(cargo metadata --locked --format-version 1 --filter-platform "$host" | grep -o '"manifest_path":"[^"]*"' | cut -d'"' -f4)
cargo tree --locked --target "$host" --package flatfell --edges normal --prefix none --no-dedupe --format '{p}|{l}' | sort -u |
	while IFS='|' read -r package licence; do
		name=$(echo "$package" | cut -d' ' -f1)
		version=$(echo "$package" | cut -d' ' -f2)
		directory=$(echo "$manifests" | grep "/$name-${version#v}/Cargo.toml$" | head -n 1)
		# Our own crates are under LICENSE.
		[ -n "$directory" ] || continue
		texts=
		for text in "${directory%/*}"/LICEN[CS]E* "${directory%/*}"/COPYING* "${directory%/*}"/NOTICE*; do
			[ -f "$text" ] || continue
			sum=$(sha256sum "$text" | cut -c1-16)
			install -m 0644 "$text" "$docs/flatfell/texts/$sum"
			texts="$texts $sum"
		done
		echo "$name $version: $licence:${texts:- no text of its own}"
	done >"$docs/flatfell/crates"
[ -s "$docs/flatfell/crates" ] || { echo "rootfs: cargo named no crate" >&2; exit 1; }
