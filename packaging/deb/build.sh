#!/bin/sh
# Makes a Debian package of binaries that are built: `build.sh BIN_DIR OUT_DIR` prints its path.
# Nothing is needed but dpkg-deb. The same binaries give the same package, byte by byte.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
bin=$(cd "$1" && pwd)
out=$(mkdir -p "$2" && cd "$2" && pwd)

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)
arch=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"

make --no-print-directory -s -C "$top" install OUT="$bin" DESTDIR="$root" PREFIX=/usr
doc=$root/usr/share/doc/holdfast
install -m 0644 "$top/packaging/deb/copyright" "$doc/copyright"
install -m 0644 "$top/CHANGELOG.md" "$doc/changelog"
gzip -9n "$doc/changelog" "$root"/usr/share/man/man*/*

# What is inside of static binaries, for whoever has to know where a library's bug went.
source_of() {
	dpkg-query -W -f '${source:Package} (= ${source:Version})' "$1" 2>/dev/null || true
}
static=
for library in libc6-dev libseccomp-dev; do
	source=$(source_of "$library")
	[ -z "$source" ] || static="${static:+$static, }$source"
done

mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@STATIC@/$static/" \
	-e "s/@SIZE@/$(du -sk --apparent-size "$root/usr" | cut -f 1)/" \
	-e '/^[A-Za-z-]*: *$/d' "$top/packaging/deb/control" >"$root/DEBIAN/control"
install -m 0755 "$top/packaging/deb/prerm" "$top/packaging/deb/postinst" "$top/packaging/deb/postrm" "$root/DEBIAN/"

epoch=$(git -C "$top" log -1 --format=%ct 2>/dev/null || stat -c %Y "$top/CHANGELOG.md")
find "$root" -exec touch -h -d "@$epoch" {} +
package=$out/holdfast_${version}_$arch.deb
SOURCE_DATE_EPOCH=$epoch dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$package" >/dev/null
echo "$package"
