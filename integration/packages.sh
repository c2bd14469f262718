#!/bin/sh
# Makes sure that Debian packages are there: `packages.sh COMMAND:PACKAGE ...`.
# With a COMMAND the package counts as present when the command is found, whoever installed it;
# without one (`:libseccomp-dev`) dpkg is asked.
set -eu

missing=
for need in "$@"; do
	command=${need%%:*}
	package=${need#*:}
	if [ -n "$command" ]; then
		PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null 2>&1 && continue
	elif [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ]; then
		continue
	fi
	case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done

[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "needed and not found:$missing (Debian package names; this machine has no apt-get)" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "needed and not found:$missing" >&2
	echo "as root: apt-get install --no-install-recommends$missing" >&2
	exit 1
fi
echo "installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get -qq -y --no-install-recommends install $missing >/dev/null 2>&1 && exit 0
apt-get -qq update
# shellcheck disable=SC2086
apt-get -qq -y --no-install-recommends install $missing >/dev/null
