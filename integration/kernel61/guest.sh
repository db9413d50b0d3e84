#!/bin/sh
# Runs the reduced matrix inside the guest, as its first process. A line for each step goes to the console:
#
#   kernel61: ok NAME SECONDS | kernel61: failed NAME SECONDS | kernel61: end COUNT-OF-FAILED
here=$1
cd "$here" || exit 1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export FLATFELL_PATIENCE=10
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
for place in /dev/shm /run /tmp; do
	mount -t tmpfs tmpfs "$place"
done
mkdir -p /lib/modules /run/netns
mount --bind "$here/target/kernel61/root/lib/modules" /lib/modules
ip link set lo up
echo "kernel61: Linux $(uname -r), $(nproc) processors, $(nft --version)"

. "$here/target/kernel61/plan"
failed=0
run() {
	name=$1
	shift
	# All but the first want it, whichever of them are run.
	[ "$name" = br_netfilter ] || modprobe br_netfilter
	begun=$(cut -d. -f1 /proc/uptime)
	if timeout 900 "$@" >/tmp/out 2>&1; then
		word=ok
	else
		word=failed failed=$((failed + 1))
	fi
	if [ "$word" = failed ] || [ "$verbose" = yes ]; then
		cut -c1-300 /tmp/out | tail -n 120
	fi
	echo "kernel61: $word $name $(($(cut -d. -f1 /proc/uptime) - begun))"
}
plan
echo "kernel61: end $failed"
sync
echo o >/proc/sysrq-trigger
while :; do :; done
