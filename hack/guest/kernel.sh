# Part of build.sh: the kernel, its modules, our own module, and the initramfs.

# kernel_version prints the version that the kernel package stands for, such as 6.1.0-56-cloud-amd64.
kernel_version() {
  sed -n 's/^linux-image-\([0-9][^ ]*-cloud-amd64\) .*/\1/p' "$cache/packages.list" | sort -V | tail -n 1 | grep . ||
    fail "$kernel_package names no kernel"
}

# make_kernel VERSION: vmlinux, and the tree of modules in $work/kernel.
make_kernel() {
  local version=$1
  unpack "$work/kernel" "linux-image-$version"
  unpack_vmlinux "$work/kernel/boot/vmlinuz-$version" "$out/vmlinux"
  make_module "$version"
  install -D -m 644 "$work/module/berth_memory.ko" "$work/kernel/lib/modules/$version/extra/berth_memory.ko"
  depmod -b "$work/kernel" "$version"
  list_modules "$version"
}

# unpack_vmlinux BZIMAGE VMLINUX: takes the ELF image out of a bzImage, whatever it is compressed with.
unpack_vmlinux() {
  local bzimage=$1 vmlinux=$2 magic program offset
  while IFS='|' read -r magic program; do
    for offset in $(grep -abo -P "$magic" "$bzimage" | cut -d: -f1); do
      # What follows the compressed data makes the program complain after it has written everything.
      tail -c "+$((offset + 1))" "$bzimage" | $program >"$work/vmlinux" 2>/dev/null || true
      if readelf -h "$work/vmlinux" >/dev/null 2>&1; then
        mv "$work/vmlinux" "$vmlinux"
        return
      fi
    done
  done <<'END'
\x02\x21\x4c\x18|lz4 -d -c -
\x28\xb5\x2f\xfd|zstd -d -c
\xfd7zXZ\x00|xz -d -c
\x1f\x8b\x08|gzip -d -c
END
  fail "found no kernel in $bzimage; its compression is unknown to unpack_vmlinux"
}

# make_module VERSION: builds module/ against the kernel's headers in a tree of its own, where Debian's absolute paths are made to fit.
make_module() {
  local version=$1 common kbuild headers
  common=$(sed -n 's/^\(linux-headers-[^ ]*-common\) .*/\1/p' "$cache/packages.list")
  kbuild=$(sed -n 's/^\(linux-kbuild-[^ ]*\) .*/\1/p' "$cache/packages.list")
  unpack "$work/headers" "linux-headers-$version" "$common" "$kbuild"
  headers="$work/headers/usr/src/linux-headers-$version"
  sed -i "s|/usr/src|$work/headers/usr/src|" "$headers/Makefile"
  # The compiler of this machine, if the one that Debian built the kernel with is not here.
  command -v "$(sed -n 's/^CC = .*\(gcc-[0-9]*\)$/\1/p' "$headers/.kernelvariables")" >/dev/null ||
    sed -i 's/gcc-[0-9]*$/gcc/' "$headers/.kernelvariables"
  cp -r "$here/module" "$work/module"
  make -C "$headers" "M=$work/module" CONFIG_DEBUG_INFO_BTF_MODULES= KCFLAGS="-ffile-prefix-map=$work=." modules >"$work/module.log" 2>&1 ||
    { tail -n 20 "$work/module.log" >&2; fail "cannot build the kernel module berth_memory"; }
  strip --strip-debug "$work/module/berth_memory.ko"
}

# list_modules VERSION: puts the modules of modules.txt and what they depend on into the cache, and the order to load them in.
list_modules() {
  local version=$1 name line path
  rm -rf "$cache/modules"
  mkdir -p "$cache/modules"
  grep -v '^#' "$here/modules.txt" | while read -r name; do
    modprobe -d "$work/kernel" -S "$version" --show-depends "$name" >"$work/depends" 2>&1 ||
      { cat "$work/depends" >&2; fail "kernel $version has no module $name (hack/guest/modules.txt)"; }
    while read -r line path _; do
      [ "$line" = insmod ] || continue
      [ -f "$cache/modules/$(basename "$path")" ] && continue
      install -m 644 "$path" "$cache/modules/"
      basename "$path" >>"$cache/modules/order"
    done <"$work/depends"
  done
}

# make_initrd: uncompressed, because unpacking costs the template's boot more than reading does.
make_initrd() {
  local root="$work/initrd"
  mkdir -p "$root/modules"
  install -m 755 "$agent" "$root/init"
  cp "$cache/modules"/* "$root/modules/"
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  (cd "$root" && find . | sort | cpio --quiet --create --format=newc --reproducible --owner=0:0) >"$out/initrd.new"
  mv "$out/initrd.new" "$out/initrd"
}

# write_manifest VERSION
write_manifest() {
  local version=$1 file comma=""
  {
    printf '{\n  "kernel": "%s",\n  "files": {' "$version"
    for file in vmlinux initrd tools.erofs; do
      printf '%s\n    "%s": "sha256:%s"' "$comma" "$file" "$(sha256sum "$out/$file" | cut -d' ' -f1)"
      comma=,
    done
    printf '\n  },\n  "packages": {'
    comma=""
    while read -r name; do
      printf '%s\n    "%s": "%s"' "$comma" "$name" "$(sed -n "s/^$name \([^ ]*\) .*/\1/p" "$cache/packages.list")"
      comma=,
    done < <(printf '%s\n' "linux-image-$version" "${tools_packages[@]}" | sort)
    printf '\n  }\n}\n'
  } >"$out/manifest.json.new"
  mv "$out/manifest.json.new" "$out/manifest.json"
}
