#!/bin/sh
# Builds the image without a container engine: an OCI archive by tar, gzip and sha256sum.
#
#   deploy/image.sh [--binary FILE] [--output FILE]
#
# Without --binary it makes a release build. The same input gives the same bytes. What reads the result:
# `ctr -n k8s.io images import`, `k3s ctr images import`, `podman load`, `skopeo copy oci-archive:FILE docker://…`.
set -eu

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
binary=
output=
while [ $# -gt 0 ]; do
	case $1 in
	--binary) binary=$2 ;;
	--output) output=$2 ;;
	*) echo "usage: deploy/image.sh [--binary FILE] [--output FILE]" >&2 && exit 2 ;;
	esac
	shift 2
done
if [ -z "$binary" ]; then
	cargo build --locked --release --package flatfell
	sh deploy/plugin.sh
	binary=$target/release/flatfell
fi

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) echo "image: there is no image for $(uname -m)" >&2 && exit 1 ;;
esac
name=${IMAGE:-ghcr.io/flatfell/flatfell}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
output=${output:-$target/image/flatfell-$version-$arch.tar}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root" "$work/oci/blobs/sha256" "$(dirname "$output")"
chmod 0755 "$work/root"
sh deploy/rootfs.sh "$binary" "$work/root"

archive() {
	tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --directory "$1" .
}
sum() { sha256sum "$1" | cut -d' ' -f1; }
size() { stat --format=%s "$1"; }
# Moves a file to where its content says, and prints that.
blob() {
	digest=$(sum "$1")
	mv "$1" "$work/oci/blobs/sha256/$digest"
	echo "$digest"
}

archive "$work/root" >"$work/layer.tar"
contents=$(sum "$work/layer.tar")
gzip -9 --no-name --stdout "$work/layer.tar" >"$work/layer"
layer_size=$(size "$work/layer")
layer=$(blob "$work/layer")

labels=$(
	cat <<-JSON
		"org.opencontainers.image.title": "flatfell",
		"org.opencontainers.image.version": "$version",
		"org.opencontainers.image.revision": "$revision",
		"org.opencontainers.image.created": "$created",
		"org.opencontainers.image.source": "https://github.com/flatfell/flatfell",
		"org.opencontainers.image.licenses": "GPL-3.0-only"
	JSON
)
cat >"$work/config" <<-JSON
	{
	"created": "$created",
	"architecture": "$arch",
	"os": "linux",
	"config": {"User": "0:0", "Entrypoint": ["/flatfell"], "WorkingDir": "/", "Env": ["PATH=/"], "Labels": {$labels}},
	"rootfs": {"type": "layers", "diff_ids": ["sha256:$contents"]},
	"history": [{"created": "$created", "created_by": "deploy/image.sh"}]
	}
JSON
config_size=$(size "$work/config")
config=$(blob "$work/config")

cat >"$work/manifest" <<-JSON
	{
	"schemaVersion": 2,
	"mediaType": "application/vnd.oci.image.manifest.v1+json",
	"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:$config", "size": $config_size},
	"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:$layer", "size": $layer_size}],
	"annotations": {$labels}
	}
JSON
manifest_size=$(size "$work/manifest")
manifest=$(blob "$work/manifest")

cat >"$work/oci/index.json" <<-JSON
	{
	"schemaVersion": 2,
	"mediaType": "application/vnd.oci.image.index.v1+json",
	"manifests": [{
	"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:$manifest", "size": $manifest_size,
	"platform": {"architecture": "$arch", "os": "linux"},
	"annotations": {"io.containerd.image.name": "$name:$version", "org.opencontainers.image.ref.name": "$version"}
	}]
	}
JSON
echo '{"imageLayoutVersion": "1.0.0"}' >"$work/oci/oci-layout"
archive "$work/oci" >"$output"
echo "$output: $name:$version for linux/$arch, layer $layer_size bytes compressed, $(size "$work/layer.tar") unpacked, manifest sha256:$manifest"
