#!/bin/sh
# A container's life under Holdfast, from start to `holdfast why`, in a private containerd.
# Nothing on the host changes; every step is checked, and the exit status is 0 only if all were seen to be true.
set -eu

cd "$(dirname "$0")/.."
bin=${HOLDFAST_BIN_DIR:-$PWD/target/release}
# For comparison: HOLDFAST_TEST_PEER=runc shows the same with containerd's own shim.
type=io.containerd.holdfast.v2
[ "${HOLDFAST_TEST_PEER:-}" != runc ] || type=io.containerd.runc.v2

here=$(mktemp -d /tmp/holdfast-demo-XXXXXX)
namespace=$(basename "$here")
image=holdfast.demo/busybox:latest
daemon=
step=0

if [ -t 1 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') good=$(printf '\033[32m') bad=$(printf '\033[31m') plain=$(printf '\033[0m')
else bold= dim= good= bad= plain=; fi

say() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"; }
show() { sed "s/^/   ${dim}|${plain} /"; }
seen() { printf '   %s✓%s %s\n' "$good" "$plain" "$1"; }
fail() {
	printf '   %s✗ %s%s\n' "$bad" "$1" "$plain" >&2
	grep -E 'level=(error|warning)' "$here/containerd.log" 2>/dev/null | tail -n 10 >&2 || true
	exit 1
}
# Runs a command, shows it and what it says; the output is in $out, the exit status in $code.
try() {
	printf '   %s$ %s%s\n' "$dim" "$*" "$plain"
	code=0
	out=$(timeout 60 "$@" 2>&1) || code=$?
	[ -z "$out" ] || printf '%s\n' "$out" | show
}
# ctr takes the private socket and namespace from the environment: the words below are those a person types.
export CONTAINERD_ADDRESS="$here/containerd.sock" CONTAINERD_NAMESPACE="$namespace"

clean() {
	status=$?
	trap - EXIT INT TERM
	timeout 20 ctr tasks kill --signal SIGKILL box >/dev/null 2>&1 || true
	timeout 20 ctr tasks delete --force box >/dev/null 2>&1 || true
	if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
	# What is ours names our folder on its command line.
	for entry in /proc/[0-9]*/cmdline; do
		pid=${entry#/proc/}; pid=${pid%/cmdline}
		[ "$pid" != $$ ] || continue
		if tr '\0' ' ' 2>/dev/null <"$entry" | grep -q -F -- "$here"; then kill -9 "$pid" 2>/dev/null || true; fi
	done
	sed -n "s,^[^ ]* [^ ]* [^ ]* [^ ]* \($here[^ ]*\) .*,\1,p" /proc/self/mountinfo | sort -r |
		while read -r point; do umount -l "$point" 2>/dev/null || true; done
	for cgroup in /sys/fs/cgroup/*/"$namespace" /sys/fs/cgroup/"$namespace"; do
		[ ! -d "$cgroup" ] || find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
	done
	rm -rf "/run/holdfast/$namespace" "/run/containerd/runc/$namespace"
	rm -rf "$here"
	exit $status
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(id -u)" = 0 ] || fail "containers need root here: sudo make demo"
printf '%sHoldfast: a container from start to end%s\n' "$bold" "$plain"
printf '%s   everything happens in %s%s\n' "$dim" "$here" "$plain"

say "The binaries, static, nothing else needed"
for name in holdfast containerd-shim-holdfast-v2; do
	[ -x "$bin/$name" ] || [ $type = io.containerd.runc.v2 ] || fail "$bin/$name is not there: run 'make build'"
	[ ! -x "$bin/$name" ] || ls -l "$bin/$name" | awk '{print $5 " bytes  " $NF}' | show
done
if [ $type = io.containerd.holdfast.v2 ]; then
	try "$bin/holdfast" --version
	[ "$code" = 0 ] || fail "holdfast --version ended with $code"
	seen "holdfast runs"
fi

say "A private containerd: own root, state and socket"
cat >"$here/config.toml" <<CONFIG
version = 2
root = "$here/root"
state = "$here/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$here/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$here/opt"
CONFIG
# Descriptors of the calling shell would end up in shims.
for descriptor in /proc/$$/fd/*; do
	number=${descriptor##*/}
	case $number in [3-9]) eval "exec $number>&-" ;; esac
done
PATH="$bin:$PATH:/usr/sbin" HOLDFAST_LEDGER_DIR="$here/ledger" \
	containerd --config "$here/config.toml" >"$here/containerd.log" 2>&1 </dev/null &
daemon=$!
tries=0
until timeout 5 ctr version >"$here/version" 2>/dev/null; do
	kill -0 $daemon 2>/dev/null || { cat "$here/containerd.log" >&2; fail "containerd ended"; }
	tries=$((tries + 1))
	[ $tries -lt 100 ] || fail "containerd does not answer"
	sleep 0.1
done
sed -n '/Server/,$p' "$here/version" | show
seen "containerd answers"

say "An image: busybox, packed on the spot"
mkdir -p "$here/image/rootfs/bin" "$here/image/rootfs/etc" "$here/image/rootfs/tmp" "$here/image/layout/blobs/sha256"
cp "$(command -v busybox)" "$here/image/rootfs/bin/busybox"
for applet in sh cat echo env grep hostname id ls ps sleep true uname; do
	ln "$here/image/rootfs/bin/busybox" "$here/image/rootfs/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$here/image/rootfs/etc/passwd"
tar -C "$here/image/rootfs" -cf "$here/image/layer" .
# Puts a file into the layout under its digest; prints a descriptor of it.
blob() {
	digest=$(sha256sum "$2" | cut -d' ' -f1)
	cp "$2" "$here/image/layout/blobs/sha256/$digest"
	printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%d%s}' \
		"$1" "$digest" "$(stat -c %s "$2")" "${3:-}"
}
layer=$(blob layer.v1.tar "$here/image/layer")
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
	"$(dpkg --print-architecture 2>/dev/null || echo amd64)" "$(sha256sum "$here/image/layer" | cut -d' ' -f1)" >"$here/image/config"
config=$(blob config.v1+json "$here/image/config")
printf '{"schemaVersion":2,"config":%s,"layers":[%s]}' "$config" "$layer" >"$here/image/manifest"
manifest=$(blob manifest.v1+json "$here/image/manifest" ",\"annotations\":{\"io.containerd.image.name\":\"$image\"}")
printf '{"schemaVersion":2,"manifests":[%s]}' "$manifest" >"$here/image/layout/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$here/image/layout/oci-layout"
tar -C "$here/image/layout" -cf "$here/image.tar" .
try ctr images import "$here/image.tar"
[ "$code" = 0 ] || fail "the import ended with $code"
seen "imported"

say "A container, with docker's default seccomp profile"
try ctr run --detach --null-io --seccomp --fifo-dir "$here/fifo" --runtime $type $image box sh -c "trap '' TERM; while :; do sleep 1; done"
[ "$code" = 0 ] || fail "ctr run ended with $code"
try ctr tasks list
pid=$(printf '%s\n' "$out" | awk '$1 == "box" && $3 == "RUNNING" { print $2 }')
[ -n "$pid" ] || fail "box is not running"
seen "box runs; its first process is $pid on the host"
shim=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")
tr '\0' ' ' <"/proc/$shim/cmdline" | show
if [ $type = io.containerd.holdfast.v2 ]; then
	tr '\0' '\n' <"/proc/$shim/cmdline" | head -n 1 | grep -q containerd-shim-holdfast-v2 || fail "its parent is not our shim"
	seen "its parent is our shim"
fi

say "A second process in it"
try ctr tasks exec --fifo-dir "$here/fifo" --exec-id hello box sh -c 'hostname >/dev/null; echo "hello from pid $$"; grep -E "Seccomp:|NoNewPrivs" /proc/self/status; exit 7'
[ "$code" = 7 ] || fail "exit code $code instead of 7"
seen "it ended with 7, as it said it would"
printf '%s\n' "$out" | grep -q 'Seccomp:.*2' || fail "no seccomp filter is in force"
seen "the seccomp filter is in force for it too"
try ctr tasks exec --fifo-dir "$here/fifo" --exec-id missing box nosuchprogram
[ "$code" != 0 ] || fail "a program that is not there was run"
printf '%s\n' "$out" | grep -q 'executable file not found' || fail "the error does not say what is wrong"
seen "a program that is not there is an error that says so"

say "What runs in it"
try ctr tasks ps box
printf '%s\n' "$out" | grep -q -w "$pid" || fail "$pid is not listed"
seen "its processes are listed"

say "Paused, and resumed"
try ctr tasks pause box
try ctr tasks list
printf '%s\n' "$out" | grep -q 'box.*PAUSED' || fail "box is not paused"
try ctr tasks resume box
try ctr tasks list
printf '%s\n' "$out" | grep -q 'box.*RUNNING' || fail "box does not run"
seen "paused, then running again"

say "Killed"
try ctr tasks kill --signal SIGKILL box
[ "$code" = 0 ] || fail "ctr tasks kill ended with $code"
tries=0
until ctr tasks list | grep -q 'box.*STOPPED'; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] || fail "box does not stop"
	sleep 0.1
done
try ctr tasks list
try ctr tasks delete box
printf '%s\n' "$out" | grep -q 137 || fail "its exit code is not 137"
try ctr containers delete box
[ "$code" = 0 ] || fail "ctr containers delete ended with $code"
seen "exit code 137, 128 + SIGKILL"

if [ $type = io.containerd.holdfast.v2 ]; then
	say "Why did it end?"
	export HOLDFAST_LEDGER_DIR="$here/ledger"
	PATH="$bin:$PATH"
	tries=0
	until timeout 10 holdfast why box >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ $tries -lt 50 ] || break
		sleep 0.1
	done
	try holdfast why box
	[ "$code" = 0 ] || fail "holdfast why ended with $code"
	printf '%s\n' "$out" | grep -qi kill || fail "it does not say that it was killed"
	seen "the reason is recorded, and outlives container and shim"
fi

say "Nothing is left"
tries=0
while :; do
	left=
	[ -z "$(find /sys/fs/cgroup/*/"$namespace" -mindepth 1 -type d 2>/dev/null)" ] || left="$left cgroups"
	! grep -q -F "$here" /proc/self/mountinfo || left="$left mounts"
	[ ! -d "/proc/$shim" ] || left="$left shim"
	[ -n "$left" ] || break
	tries=$((tries + 1))
	[ $tries -lt 100 ] || fail "left behind:$left"
	sleep 0.1
done
seen "no process, no mount, no cgroup"

printf '\n%sEvery step was seen to be true.%s\n' "$good" "$plain"
