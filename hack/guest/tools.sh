# Part of build.sh: the tools image, which is the guest's root file system.

# make_tools VERSION: needs the tree of modules in $work/kernel.
make_tools() {
  local version=$1 root="$work/tools" packages="$work/packages" program
  # shellcheck disable=SC2046 # package names
  unpack "$packages" "${tools_packages[@]}" $(awk '$1 ~ /^lib/ && $1 !~ /perl/ { print $1 }' "$cache/packages.list")
  skeleton "$root"
  without_systemd "$packages/usr/bin/crun" "$root"
  while read -r program; do
    take "$packages" "$root" "$program"
  done < <(grep -v '^#' "$here/tools.txt")
  ln -s ../bin/kmod "$root/usr/sbin/modprobe"
  ln -s mount.nfs "$root/usr/sbin/mount.nfs4"
  cp "$packages/etc/netconfig" "$packages/etc/protocols" "$packages/etc/services" "$root/etc/"
  cp -r "$work/kernel/lib/modules" "$root/usr/lib/"
  rm -f "$root/usr/lib/modules/$version/build" "$root/usr/lib/modules/$version/source"
  # Uncompressed: programs are read on every host from the page cache, and decompressing costs an emulated CPU much.
  rm -f "$out/tools.new"
  mkfs.erofs -T "$SOURCE_DATE_EPOCH" -U 00000000-0000-0000-0000-000000000000 --all-root "$out/tools.new" "$root" >"$work/erofs.log" 2>&1 ||
    { tail -n 5 "$work/erofs.log" >&2; fail "mkfs.erofs failed; install erofs-utils 1.5 or later"; }
  mv "$out/tools.new" "$out/tools.erofs"
}

# skeleton ROOT: the directories of a root file system that is never written to; what changes lives in /run.
skeleton() {
  local root=$1 name
  mkdir -p "$root"/{proc,sys,dev,run,tmp,etc,initrd} "$root"/usr/{bin,sbin,lib,lib64}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  ln -s run "$root/var"
  ln -s /proc/self/mounts "$root/etc/mtab"
  for name in hostname machine-id hosts resolv.conf; do ln -s "/run/etc/$name" "$root/etc/$name"; done
  echo 'root:x:0:0:root:/:/bin/false' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
}

# without_systemd CRUN ROOT: makes a libsystemd with the functions that crun names, none of which does anything. The guest has no systemd; the true library
# and the five that it needs are a third of what loading crun costs an emulated processor.
without_systemd() {
  local crun=$1 root=$2
  mkdir -p "$work/libsystemd" "$root/usr/lib/x86_64-linux-gnu"
  readelf -W --dyn-syms "$crun" | awk '$7 == "UND" && $8 ~ /@LIBSYSTEMD_/ { split($8, name, "@"); print name[1], name[2] }' >"$work/libsystemd/symbols"
  [ -s "$work/libsystemd/symbols" ] || return 0
  awk '{ print "int " $1 "(void) { return -38; } /* ENOSYS */" }' "$work/libsystemd/symbols" >"$work/libsystemd/none.c"
  awk '{ version[$2] = version[$2] " " $1 ";" } END { for (v in version) print v " { global:" version[v] " };" }' "$work/libsystemd/symbols" | sort >"$work/libsystemd/versions"
  gcc -shared -fPIC -Os -s -Wl,--build-id=none -Wl,-soname,libsystemd.so.0 "-Wl,--version-script=$work/libsystemd/versions" \
    -o "$root/usr/lib/x86_64-linux-gnu/libsystemd.so.0" "$work/libsystemd/none.c"
}

# find_in TREE PATH: prints the file's path in a tree where /bin, /sbin and /lib may or may not lie below /usr.
find_in() {
  local tree=$1 path=${2#/usr}
  for path in "$tree$path" "$tree/usr$path"; do
    [ -e "$path" ] && { echo "$path"; return; }
  done
  fail "no package of ${tools_packages[*]} has $2"
}

# take TREE ROOT PATH: copies a program or library and the libraries it needs.
take() {
  local tree=$1 root=$2 path=${3#/usr} needed
  [ -e "$root/usr$path" ] && return
  install -D -m 755 "$(find_in "$tree" "$path")" "$root/usr$path"
  while read -r needed; do
    case "$needed" in
      ld-linux-x86-64.so.2) take "$tree" "$root" "/lib64/$needed" ;;
      *) take "$tree" "$root" "/lib/x86_64-linux-gnu/$needed" ;;
    esac
  done < <(readelf -d "$root/usr$path" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
}
