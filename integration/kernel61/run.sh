#!/bin/sh
# A reduced matrix on Debian's own kernel 6.1, in qemu with software emulation: no KVM is asked for, nothing is installed
# but qemu, and the kernel's package is unpacked, never installed. The guest sees the machine's files read-only and writes
# to its own memory.
#
#   KERNEL61_ONLY     names of the plan's steps, instead of all
#   KERNEL61_VERBOSE  yes: what each step prints
#   KERNEL61_LIMIT    seconds until the guest is given up (2400)
set -eu

cd "$(dirname "$0")/../.."
here=$PWD
cache=$here/target/kernel61
only=${KERNEL61_ONLY:-}
limit=${KERNEL61_LIMIT:-2400}
mkdir -p "$cache"

say() { echo "kernel61: $*"; }
fail() {
	echo "kernel61: $*" >&2
	exit 1
}

# The newest 6.1 that apt has, unpacked once.
kernel() {
	package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-6\.1\..*\)/\1/p' | head -n 1)
	[ -n "$package" ] || fail "apt knows no linux-image-amd64 6.1: Debian 12 has it"
	release=${package#linux-image-}
	[ ! -e "$cache/root/lib/modules/$release/modules.dep.bin" ] || return 0
	say "fetching $package"
	rm -rf "$cache/root" "$cache/deb"
	mkdir "$cache/deb"
	(cd "$cache/deb" && { apt-get -qq download "$package" 2>/dev/null || { apt-get update -qq && apt-get -qq download "$package"; }; }) ||
		fail "$package cannot be had by apt"
	dpkg-deb --extract "$cache"/deb/*.deb "$cache/root"
	rm -rf "$cache/deb"
	depmod --basedir "$cache/root" "$release"
}

# busybox, the modules that reach the machine's files, and the first script.
initramfs() {
	tree=$cache/initramfs
	rm -rf "$tree"
	mkdir -p "$tree/bin" "$tree/modules" "$tree/proc" "$tree/dev"
	cp /bin/busybox "$tree/bin/busybox"
	for name in sh mount umount insmod mkdir cat switch_root; do
		ln -s busybox "$tree/bin/$name"
	done
	cp integration/kernel61/init "$tree/init"
	chmod +x "$tree/init"
	echo "$here" >"$tree/here"
	for module in virtio_pci 9pnet_virtio 9p overlay; do
		modprobe --dirname "$cache/root" --set-version "$release" --show-depends "$module" | sed -n 's/^insmod //p'
	done | awk '!seen[$1]++ { print $1 }' >"$cache/modules"
	while read -r file; do
		cp "$file" "$tree/modules/"
		basename "$file"
	done <"$cache/modules" >"$tree/modules/order"
	(cd "$tree" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$cache/initrd"
	rm -rf "$tree"
}

# The wanted lines of the file of steps: a name, a test's executable, its filter.
steps() {
	while read -r name rest; do
		case " ${only:-$name} " in *" $name "*) echo "$name $rest" ;; esac
	done <integration/kernel61/steps
}

# What the guest runs, as a function of shell.
plan() {
	cargo build --quiet --package flatfell --bin flatfell
	# shellcheck disable=SC2046 # a list of words
	built=$(cargo test --quiet --package flatfell-integration --no-run --message-format=json \
		$(steps | cut -d' ' -f2 | sort -u | sed 's/^/--test /'))
	echo "verbose=${KERNEL61_VERBOSE:-no}"
	echo "plan() {"
	steps | while read -r name test filter; do
		file=$(echo "$built" | sed -n "s/.*\"name\":\"$test\".*\"executable\":\"\([^\"]*\)\".*/\1/p")
		[ -x "$file" ] || fail "test $test is not built"
		echo "run $name $file --test-threads=1 $filter"
	done
	echo "}"
}

boot() {
	rm -f "$cache/console"
	timeout "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2G -no-reboot \
		-display none -monitor none -serial "file:$cache/console" -nic none \
		-virtfs local,path=/,mount_tag=host,security_model=passthrough,readonly=on,multidevs=remap \
		-kernel "$cache/root/boot/vmlinuz-$release" -initrd "$cache/initrd" \
		-append "console=ttyS0 panic=-1 quiet" </dev/null
}

integration/deps.sh gcc pkg-config libmnl-dev libnftnl-dev nftables iproute2 iptables conntrack ipvsadm qemu-system-x86 kmod busybox-static
kernel
initramfs
plan >"$cache/plan"
[ -n "$(steps)" ] || fail "no step is called $only"
status=0
boot || status=$?
tr -d '\r' <"$cache/console" >"$cache/console.txt" 2>/dev/null || true
said=$(tail -n 400 "$cache/console.txt")
echo "$said"
[ "$status" = 0 ] || fail "the guest was given up after $limit s, or qemu failed ($status)"
# A guest that fell over has no last line.
echo "$said" | grep -q '^kernel61: end 0$' || fail "something failed; the whole console: target/kernel61/console.txt"
