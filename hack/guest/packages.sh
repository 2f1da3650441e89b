# Part of build.sh: Debian's packages, downloaded into the cache and unpacked somewhere, never installed.

# resolve PACKAGE...: prints the packages and all that they depend on as name, version and file: what apt would install on an empty
# machine now. Prints nothing if apt does not know them.
resolve() {
  : >"$work/empty"
  apt-get -o "Dir::State::status=$work/empty" install --no-install-recommends --print-uris -qq "$@" 2>/dev/null |
    awk '{ file = $2; split(file, part, "_"); gsub("%3a", ":", part[2]); print part[1], part[2], file }' | sort || true
}

# package_file NAME: downloads the package if the cache has it not, and prints where it is.
package_file() {
  local name=$1 version file
  read -r _ version file < <(grep "^$name " "$cache/packages.list") || fail "package $name is not in $cache/packages.list"
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
