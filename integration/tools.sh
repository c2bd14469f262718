#!/bin/sh
# Fetches containerd 2.1 (Debian forky) into tools/containerd-2.1/ without installing it.
# The mirror is the one apt is configured with; apt's own lists and status stay untouched.
set -eu

cd "$(dirname "$0")/.."
want=tools/containerd-2.1
for binary in containerd ctr containerd-shim-runc-v2; do
	[ -x "$want/bin/$binary" ] || { rm -rf "$want"; break; }
done
[ ! -d "$want" ] || exit 0

. integration/forky.sh
forky_open tools
echo "tools: fetching containerd 2.1 from Debian forky at the mirror apt uses"
forky_unpack "$state/x" containerd

# It is built for a newer Debian: see that it runs here before anybody relies on it.
version=$("$state/x/containerd/usr/bin/containerd" --version 2>&1) || {
	echo "tools: containerd from forky does not run here: $version" >&2
	exit 1
}
mkdir -p "$want/bin"
cp "$state/x/containerd/usr/bin/containerd" "$state/x/containerd/usr/bin/ctr" "$state/x/containerd/usr/bin/containerd-shim-runc-v2" "$want/bin/"
echo "tools: $version in $want"
