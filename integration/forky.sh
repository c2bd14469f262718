# Sourced by scripts that fetch packages of Debian forky without installing them: `forky_open WHO`, then
# `forky_unpack FOLDER PACKAGE...`. The mirror is the one apt is configured with; apt's own lists and status stay
# untouched. What fails is said in one line, and the script ends with 1.

# Sets `release` and `mirror`, and makes a private state of apt in `state`, gone when the script ends.
forky_open() {
	who=$1
	for command in apt-get dpkg-deb; do
		command -v $command >/dev/null 2>&1 || { echo "$who: $command not found" >&2; exit 1; }
	done
	release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	mirror=$(apt-get update --print-uris 2>/dev/null |
		sed -n "s,^'\(.*\)/dists/$release/InRelease'.*,\1,p" | head -n 1)
	if [ -z "$mirror" ]; then
		echo "$who: apt knows no mirror for $release, so where to fetch forky from is unknown" >&2
		exit 1
	fi
	state=$(mktemp -d)
	trap 'rm -rf "$state"' EXIT
	chmod 0755 "$state"
	mkdir -p "$state/lists/partial" "$state/archives/partial"
	: >"$state/status"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	signed=
	[ ! -e $keyring ] || signed="[signed-by=$keyring]"
	echo "deb $signed $mirror forky main" >"$state/sources.list"
}

private_apt() {
	apt-get -q -o Dir::State="$state" -o Dir::State::status="$state/status" \
		-o Dir::Cache="$state" -o Dir::Etc::SourceList="$state/sources.list" \
		-o Dir::Etc::SourceParts=/nonexistent -o APT::Sandbox::User=root \
		-o Acquire::Languages=none \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# Downloads packages and unpacks each into FOLDER/PACKAGE.
forky_unpack() {
	into=$1
	shift
	[ -e "$state/updated" ] || private_apt update >"$state/log" 2>&1 ||
		{ tail -n 3 "$state/log" >&2; exit 1; }
	: >"$state/updated"
	for package in "$@"; do
		(cd "$state" && private_apt download "$package") >"$state/log" 2>&1 ||
			{ tail -n 3 "$state/log" >&2; exit 1; }
		mkdir -p "$into/$package"
		dpkg-deb -x "$state/${package}"_*.deb "$into/$package"
	done
}
