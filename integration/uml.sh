#!/bin/sh
# Runs the runtime's tests on pure cgroup v2: `uml.sh [TEST...]`, each a name of integration/tests, by default all
# whose names begin with `runtime_`, and of the shim, with containerd 1.6, those that depend on the cgroup version.
# Others run too when they are named; one processor makes them slow. `uml.sh bench [ROUNDS] [SECTION...]` runs the
# benchmark there instead (`make bench-v2`).
# `CGROUPS=v1` or `CGROUPS=hybrid` boots systemd with the old hierarchies instead.
#
# The machine is User-Mode Linux of Debian forky, an ordinary process of this one: a kernel of today with systemd, cgroup
# v2 (cpu, io, memory, pids) and every capability, one processor, no network. On v1 it has cpu, cpuacct, blkio, devices,
# freezer, net_cls and pids: Debian builds it without memory and cpuset there. Its root file system is a small Debian of
# this machine's own release, so that the tests, built here, find the same C library and the same runc and crun. Both are
# kept in tools/uml/; each run writes to a throw-away copy.
#
# Exit code 0 also when the machine cannot be had; the reason is printed then.
set -eu

cd "$(dirname "$0")/.."
here=$PWD
home=$here/tools/uml
binaries=${HOLDFAST_BIN_DIR:-$here/target/release}

# How long the machine may run before it is ended, in seconds.
limit=900
memory=1G

# What systemd is told (kernel-command-line(7), systemd(1)): only versions from 256 on ask for the force.
case ${CGROUPS:-v2} in
	v2) layout= ;;
	v1) layout="systemd.legacy_systemd_cgroup_controller=1" ;;
	hybrid) layout="systemd.legacy_systemd_cgroup_controller=0" ;;
	*) echo "test-v2: CGROUPS is v1, hybrid or v2" >&2; exit 1 ;;
esac
[ -z "$layout" ] || layout="systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 $layout"

skipped() {
	echo "SKIPPED test-v2: $1"
	exit 0
}

[ "$(uname -m)" = x86_64 ] || skipped "user-mode-linux exists for x86_64 only"
[ "$(id -u)" = 0 ] || skipped "making the guest's root file system needs root"
integration/packages.sh mmdebstrap:mmdebstrap patchelf:patchelf mkfs.ext4:e2fsprogs timeout:coreutils ||
	skipped "the packages above could not be had"

# The kernel and its modules. It wants a newer C library than this machine's, so it brings its own.
fetch_kernel() {
	rm -rf "$home/kernel"
	mkdir -p "$home/kernel"
	forky_unpack "$home/kernel" user-mode-linux libc6
	libraries=$home/kernel/libc6/usr/lib/x86_64-linux-gnu
	cp "$home/kernel/user-mode-linux/usr/bin/linux.uml" "$home/linux" &&
		patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" --set-rpath "$libraries" "$home/linux"
}

# The root file system, and in it the unit that runs what the host wants run.
make_root() {
	tree=$state/root
	mmdebstrap --quiet --mode=root --variant=essential --skip=cleanup/apt \
		--aptopt='Acquire::Languages "none"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--include=systemd,systemd-sysv,dbus,kmod,mount,containerd,runc,crun,busybox-static,strace \
		--include=libpam-systemd,dbus-user-session,passwd,uidmap \
		"$release" "$tree" "$mirror" >"$state/log" 2>&1 || return 1
	for modules in "$home"/kernel/user-mode-linux/usr/lib/uml/modules/*; do
		at=$tree/usr/lib/modules/${modules##*/}
		mkdir -p "$at/kernel/drivers"
		cp "$modules"/modules.* "$at/"
		cp -R "$modules/kernel/fs" "$modules/kernel/net" "$modules/kernel/lib" "$at/kernel/"
		cp -R "$modules/kernel/drivers/net" "$at/kernel/drivers/"
	done
	cat >"$tree/etc/systemd/system/holdfast-tests.service" <<-END
		[Unit]
		Description=The tests of holdfast
		[Service]
		Type=oneshot
		ExecStart=/bin/sh /usr/local/sbin/holdfast-tests
		StandardOutput=tty
		Delegate=yes
	END
	mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
	# Tests that want containerd start their own.
	rm -f "$tree/etc/systemd/system/multi-user.target.wants/containerd.service"
	ln -s ../holdfast-tests.service "$tree/etc/systemd/system/multi-user.target.wants/"
	cat >"$tree/usr/local/sbin/holdfast-tests" <<-'END'
		# The kernel's command line says which folder of the host is ours.
		for word in $(cat /proc/cmdline); do
			case $word in holdfast_folder=*) folder=${word#*=} ;; esac
		done
		mkdir -p /host
		mount -t hostfs -o "$folder" none /host
		sh /host/run >/host/log 2>&1
		echo $? >/host/result
		sync
		systemctl poweroff --force
	END
	# Contiguous zeros cost nothing: the image is a sparse file.
	mkfs.ext4 -q -F -O ^has_journal -d "$tree" "$home/new.image" 1500M >"$state/log" 2>&1 || return 1
	mv "$home/new.image" "$home/root.image" && rm -rf "$home/kernel/user-mode-linux" &&
		echo "$recipe" >"$home/recipe"
}

# What the functions above make is made again when they change.
recipe=$(sed -n '/^fetch_kernel()/,/^# What the functions/p' "$0" | cksum)
if [ "$(cat "$home/recipe" 2>/dev/null)" != "$recipe" ] || ! "$home/linux" --version >/dev/null 2>&1; then
	mkdir -p "$home"
	echo "test-v2: fetching user-mode-linux from Debian forky, and a small Debian for it to run"
	(
		. integration/forky.sh
		forky_open test-v2
		fetch_kernel && make_root || { tail -n 5 "$state/log" >&2; exit 1; }
	) && "$home/linux" --version >/dev/null || skipped "the machine could not be made"
fi

share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
chmod 0755 "$share"
mkdir "$share/tests" "$share/bin"
cp "$binaries/holdfast" "$binaries/containerd-shim-holdfast-v2" "$share/bin/"
if [ "${1:-}" = bench ]; then
	# Its words are handed over as they are; the guest has no compiler for the floor.
	gcc -O2 -static -o "$share/bin/bare" integration/src/bench/bare.c
	cargo="build --bin bench"
	echo "$*" | cut -d ' ' -s -f 2- >"$share/words"
else
	cargo="test --no-run"
	for test in "$@"; do cargo="$cargo --test $test"; done
	[ $# -gt 0 ] || cargo="$cargo --tests"
	: >"$share/words"
fi
cargo $cargo --locked --message-format=json -p holdfast-integration >"$share/built"
sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$share/built" | while read -r executable; do
	name=${executable##*/}
	case $name in
		# A double that tests start by the path it was built at.
		fake*)
			mkdir -p "$share/programs${executable%/*}"
			cp "$executable" "$share/programs$executable"
			continue
			;;
	esac
	name=${name%-*}
	case " ${*:-all} " in
		*" $name "*) ;;
		" all ") case $name in runtime_* | stats | events | unkillable) ;; *) continue ;; esac ;;
		*) continue ;;
	esac
	cp "$executable" "$share/tests/$name"
done
[ -n "$(ls "$share/tests")" ] || { echo "test-v2: no such tests: $*" >&2; exit 1; }

cat >"$share/run" <<'END'
export HOLDFAST_BIN_DIR=/host/bin PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
# For tests that take all memory.
export HOLDFAST_THROW_AWAY_MACHINE=1
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	echo "Linux $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers)"
else
	echo "Linux $(uname -r), cgroups at" $(cd /sys/fs/cgroup && echo *)
fi
[ ! -d /host/programs ] || cp -R /host/programs/. /
failed=0
for test in /host/tests/*; do
	echo "     Running $(basename $test)"
	case $test in
		*/bench) $test $(cat /host/words) || failed=1 ;;
		# One processor: what is slow here would be slower side by side.
		*) $test --test-threads=1 || failed=1 ;;
	esac
done
exit $failed
END

echo "test-v2: booting, with the tests" $(ls "$share/tests")
: >"$share/log"
timeout -k 10 "$limit" "$home/linux" mem=$memory "ubd0=$share/changes,$home/root.image" root=/dev/ubda rw init=/sbin/init \
	"holdfast_folder=$share" $layout con=null con0=null,fd:1 con1=null ssl=null seccomp=on \
	</dev/null >"$share/console" 2>&1 || true
cat "$share/log"
result=$(cat "$share/result" 2>/dev/null || true)
if [ -z "$result" ]; then
	echo "test-v2: the machine ended before the tests did (it may run for $limit s); its last words:" >&2
	tail -n 20 "$share/console" >&2
	exit 1
fi
exit "$result"
