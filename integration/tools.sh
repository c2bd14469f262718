#!/bin/sh
# Fetches from Debian forky, without installing: containerd 2.1 into tools/containerd-2.1/, and the newest runc and crun
# with the libraries they want into tools/peers/. The mirror is the one apt is configured with; apt's own lists and status
# stay untouched.
set -eu

cd "$(dirname "$0")/.."
. integration/forky.sh

# have FOLDER PROGRAM...: whether all of them are there.
have() {
	folder=$1
	shift
	for program in "$@"; do
		[ -x "$folder/$program" ] || return 1
	done
}

fetch_containerd() {
	want=tools/containerd-2.1
	! have $want/bin containerd ctr containerd-shim-runc-v2 || return 0
	rm -rf $want
	echo "tools: fetching containerd 2.1 from Debian forky at the mirror apt uses"
	forky_unpack "$state/x" containerd
	# It is built for a newer Debian: see that it runs here before anybody relies on it.
	version=$("$state/x/containerd/usr/bin/containerd" --version 2>&1) || {
		echo "tools: containerd from forky does not run here: $version" >&2
		exit 1
	}
	mkdir -p $want/bin
	for program in containerd ctr containerd-shim-runc-v2; do
		cp "$state/x/containerd/usr/bin/$program" $want/bin/
	done
	echo "tools: $version in $want"
}

# Only the benchmarks use them. They want a newer C library than this machine's, so they are told where theirs is.
fetch_peers() {
	want=tools/peers
	! have $want/bin runc crun || return 0
	integration/packages.sh patchelf:patchelf || return 1
	rm -rf $want
	echo "tools: fetching the newest runc and crun from Debian forky"
	forky_unpack "$state/p" runc crun libc6 libseccomp2 libsystemd0 libcap2 libjson-c5 libblake3-0
	mkdir -p $want/lib $want/new
	for library in "$state"/p/lib*/usr/lib/*-linux-gnu; do
		cp -a "$library"/*.so* $want/lib/
	done
	loader=$(ls -d "$PWD"/$want/lib/ld-linux*.so.* | head -n 1)
	for program in runc crun; do
		cp -L "$state/p/$program/usr/bin/$program" $want/new/
		patchelf --set-interpreter "$loader" --set-rpath "$PWD/$want/lib" $want/new/$program
		echo "tools: $($want/new/$program --version | head -n 1) in $want"
	done
	mv $want/new $want/bin
}

! have tools/containerd-2.1/bin containerd ctr containerd-shim-runc-v2 || ! have tools/peers/bin runc crun || exit 0
forky_open tools
fetch_containerd
fetch_peers || echo "tools: the newest runc and crun could not be had: benchmarks will say so and go without"
