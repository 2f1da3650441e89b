# Part of build.sh: Debian's packages, downloaded into the cache and unpacked somewhere, never installed.

# resolve PACKAGE...: writes $cache/packages.list, the packages and all that they depend on, as name, version and file. It
# is what apt would install on an empty machine now. Without apt's lists, the list of the last time is used.
resolve() {
  : >"$work/empty"
  apt-get -o "Dir::State::status=$work/empty" install --no-install-recommends --print-uris -qq "$@" >"$work/uris" 2>"$work/apt.log" ||
    if [ -s "$cache/packages.list" ]; then return; else
      tail -n 5 "$work/apt.log" >&2; fail "cannot find the packages $*; run apt-get update, or add a Debian mirror to apt's sources"
    fi
  awk '{ file = $2; split(file, part, "_"); gsub("%3a", ":", part[2]); print part[1], part[2], file }' "$work/uris" | sort >"$cache/packages.list"
}

# package_file NAME: downloads the package if the cache has it not, and prints where it is.
package_file() {
  local name=$1 version file
  read -r _ version file < <(grep "^$name " "$cache/packages.list") || fail "package $name is not among those that apt resolved"
  if [ ! -f "$cache/$file" ]; then
    (cd "$cache" && apt-get download -qq "$name=$version") >"$work/download.log" 2>&1 ||
      { tail -n 5 "$work/download.log" >&2; fail "cannot download package $name $version; is a Debian mirror reachable?"; }
  fi
  echo "$cache/$file"
}

# unpack DIRECTORY NAME...
unpack() {
  local directory=$1 name file; shift
  mkdir -p "$directory"
  for name in "$@"; do
    file=$(package_file "$name")
    dpkg-deb --fsys-tarfile "$file" | tar -x -C "$directory" --no-same-owner --keep-directory-symlink
  done
}
