#!/bin/sh
# Installs the Debian packages named, where any is missing, and says so. Fails loudly where it cannot.
set -eu

if [ "$(id -u)" != 0 ]; then
	echo "deps: network namespaces and apt need root: run this as root" >&2
	exit 1
fi

missing=
for package in "$@"; do
	dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing="$missing $package"
done
if [ -n "$missing" ]; then
	echo "deps: installing$missing (apt)"
	apt-get update -qq
	# Programs are wanted, not their services: prometheus' package would start one (invoke-rc.d asks this file).
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
		trap 'rm -f "$policy"' EXIT
	fi
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
	case " $missing " in *" prometheus "*) systemctl disable --quiet prometheus.service 2>/dev/null || true ;; esac
fi

need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
have=$(rustc --version 2>/dev/null | cut -d' ' -f2 || true)
if [ -z "$have" ] || [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n 1)" != "$need" ]; then
	echo "deps: Rust $need or later is needed (found: ${have:-none}): install rustup (apt install rustup, or https://rustup.rs) and run: rustup default stable" >&2
	exit 1
fi

for file in /proc/sys/net/bridge/bridge-nf-call-iptables /proc/sys/net/netfilter/nf_conntrack_max; do
	[ -e "$file" ] || modprobe br_netfilter nf_conntrack 2>/dev/null || true
	if [ ! -e "$file" ] && [ "$file" = /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
		echo "deps: the kernel has no br_netfilter ($file is missing): modprobe br_netfilter" >&2
		exit 1
	fi
done
