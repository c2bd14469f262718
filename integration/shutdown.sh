#!/bin/sh
# A node is shut down while containers run, and after the next boot `holdfast why` says that this was the reason.
#
# The node is the machine of uml.sh (systemd, cgroup v2), which has to be there already: booted once for the containers
# and `systemctl poweroff`, and once more, from the same disk, to see what is left in the ledger.
#
# | container | cgroup | when the node goes down | what is expected |
# |---|---|---|---|
# | polite | a scope of systemd's | obeys SIGTERM with exit 143 | HF191 |
# | deaf | a scope of systemd's | is deaf to it, and gets SIGKILL in the same instant as its shim | HF191 |
# | plain | none that systemd knows | obeys SIGTERM with exit 143 | HF191 |
# | before | none that systemd knows | has ended a moment before, exit 3 | HF101 |
#
# Scopes of containers are outside of systemd's own order of shutdown, as runc's are: all four meet systemd-shutdown, which
# signals whatever is left.
#
# Exit code 0 also when the machine cannot be had; the reason is printed then.
set -eu

cd "$(dirname "$0")/.."
here=$PWD
home=${HOLDFAST_UML:-$here/tools/uml}
binaries=${HOLDFAST_BIN_DIR:-$here/target/release}
# How long each boot may last, in seconds.
limit=300

[ -e "$home/root.image" ] || { echo "SKIPPED shutdown: no machine in $home (make test-v2 makes one)"; exit 0; }

share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
chmod 0755 "$share"
mkdir "$share/bin"
cp "$binaries/holdfast" "$binaries/containerd-shim-holdfast-v2" "$share/bin/"

boot() {
	: >"$share/log"
	timeout -k 10 "$limit" "$home/linux" mem=1G "ubd0=$share/changes,$home/root.image" root=/dev/ubda rw init=/sbin/init \
		"holdfast_folder=$share" con=null con0=null,fd:1 con1=null ssl=null seccomp=on \
		</dev/null >"$share/console" 2>&1 || true
}

cat >"$share/run" <<'END'
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
set -e
cp /host/bin/* /usr/local/bin/
# Whoever does not obey is waited for as long as this.
mkdir -p /etc/systemd/system.conf.d
printf '[Manager]\nDefaultTimeoutStopSec=5s\n' >/etc/systemd/system.conf.d/short.conf
systemctl daemon-reexec
systemctl start containerd
mkdir -p /rootfs/bin /rootfs/tmp
cp /usr/bin/busybox /rootfs/bin/
for name in sh sleep usleep; do ln -s busybox /rootfs/bin/$name; done
echo 'SystemdCgroup = true' >/tmp/systemd.toml
begin() {
	name=$1
	shift
	ctr run --detach --null-io --runtime io.containerd.holdfast.v2 "$@"
	echo "shutdown: $name runs"
}
loop='while :; do usleep 100000; done'
begin before --rootfs /rootfs before sh -c 'sleep 1; exit 3'
begin polite --runtime-config-path /tmp/systemd.toml --cgroup system.slice:test:polite --rootfs /rootfs polite \
	sh -c "trap 'exit 143' TERM; $loop"
begin deaf --runtime-config-path /tmp/systemd.toml --cgroup system.slice:test:deaf --rootfs /rootfs deaf sleep 600
begin plain --rootfs /rootfs plain sh -c "trap 'exit 143' TERM; $loop"
systemctl list-units --no-legend 'test-*.scope'
until holdfast why before | grep -q HF101; do sleep 0.2; done
echo "shutdown: powering off"
systemctl poweroff --no-block
sleep 600
END
echo "shutdown: booting a node with containers, and powering it off"
boot
cat "$share/log"
grep -q "powering off" "$share/log" || { echo "shutdown: the containers did not run" >&2; tail -n 20 "$share/console" >&2; exit 1; }
[ ! -e "$share/result" ] || { echo "shutdown: the node was not shut down" >&2; exit 1; }

cat >"$share/run" <<'END'
cp -R /var/lib/holdfast/ledger /host/ledger
END
echo "shutdown: booting it again, from the same disk"
boot
[ "$(cat "$share/result" 2>/dev/null)" = 0 ] || { echo "shutdown: no ledger" >&2; cat "$share/log" >&2; tail -n 20 "$share/console" >&2; exit 1; }

failed=0
for name in polite deaf plain before; do
	case $name in before) code=HF101 ;; *) code=HF191 ;; esac
	said=$(HOLDFAST_LEDGER_DIR=$share/ledger "$share/bin/holdfast" why "$name") || true
	case $said in
		"Container $name "*"$code"*) echo "ok   $name: $(echo "$said" | head -n 1)" ;;
		*) echo "FAIL $name: not $code: $said"; failed=1 ;;
	esac
done
exit $failed
