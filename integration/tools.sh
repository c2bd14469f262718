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

for command in apt-get dpkg-deb; do
	command -v $command >/dev/null 2>&1 || { echo "tools: $command not found" >&2; exit 1; }
done

release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get update --print-uris 2>/dev/null |
	sed -n "s,^'\(.*\)/dists/$release/InRelease'.*,\1,p" | head -n 1)
if [ -z "$mirror" ]; then
	echo "tools: apt knows no mirror for $release, so where to fetch forky from is unknown" >&2
	exit 1
fi

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
chmod 0755 "$state"
mkdir -p "$state/lists/partial" "$state/archives/partial" "$state/x"
: >"$state/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
signed=
[ ! -e $keyring ] || signed="[signed-by=$keyring]"
echo "deb $signed $mirror forky main" >"$state/sources.list"

private_apt() {
	apt-get -q -o Dir::State="$state" -o Dir::State::status="$state/status" \
		-o Dir::Cache="$state" -o Dir::Etc::SourceList="$state/sources.list" \
		-o Dir::Etc::SourceParts=/nonexistent -o APT::Sandbox::User=root \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

echo "tools: fetching containerd 2.1 from Debian forky at the mirror apt uses"
private_apt update >"$state/log" 2>&1 || { tail -n 3 "$state/log" >&2; exit 1; }
(cd "$state" && private_apt download containerd) >"$state/log" 2>&1 || { tail -n 3 "$state/log" >&2; exit 1; }
dpkg-deb -x "$state"/containerd_*.deb "$state/x"

# It is built for a newer Debian: see that it runs here before anybody relies on it.
version=$("$state/x/usr/bin/containerd" --version 2>&1) || {
	echo "tools: containerd from forky does not run here: $version" >&2
	exit 1
}
mkdir -p "$want/bin"
cp "$state/x/usr/bin/containerd" "$state/x/usr/bin/ctr" "$state/x/usr/bin/containerd-shim-runc-v2" "$want/bin/"
echo "tools: $version in $want"
