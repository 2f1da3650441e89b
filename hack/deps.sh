#!/usr/bin/env bash
# Sees to it that building and running Berth find what they need: installs packages on Debian and Ubuntu (as root), and
# says exactly what is missing elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."

# program, Debian package(s), what for
needs=(
  "make|make|building"
  "gcc|gcc libc6-dev|building the pause and busybox images"
  "dpkg-source|dpkg-dev patch bzip2 xz-utils|building the busybox image"
  "mmdebstrap|mmdebstrap debian-archive-keyring|making images"
  "nft|nftables|the pods' firewall and NAT"
  "ip|iproute2|networking"
  "haproxy|haproxy|load balancers and Ingresses"
  "mount|mount|the pods' volumes"
  "curl|curl|the demo"
  "script|bsdutils|the demo"
  "tar|tar|images"
  "/usr/lib/cni/ptp|containernetworking-plugins|the test of another CNI chain"
  "qemu-system-x86_64|qemu-system-x86|microVMs"
  "mkfs.erofs|erofs-utils|the microVM's images"
  "mkfs.ext4|e2fsprogs|the microVM's disks"
  "dpkg-deb|dpkg|the microVM's guest"
  "lz4|lz4|the microVM's kernel"
  "modprobe|kmod|the microVM's modules"
  "cpio|cpio|the microVM's initramfs"
  "runc|runc|the benchmarks, which compare with it"
  "busybox|busybox-static|the tests of the microVM's guest"
)
missing=() packages=()
for need in "${needs[@]}"; do
  IFS='|' read -r program package purpose <<<"$need"
  command -v "$program" >/dev/null && continue
  missing+=("$program (for $purpose)")
  # shellcheck disable=SC2206 # one entry may name several packages
  packages+=($package)
done

if [ ${#missing[@]} -gt 0 ]; then
  if command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    log=$(mktemp)
    echo "installing: ${packages[*]}"
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
      tail -n 20 "$log" >&2
      echo "make deps: cannot install ${packages[*]}; install them yourself and run this again" >&2
      exit 1
    fi
    rm -f "$log"
  else
    printf 'make deps: missing on this machine:\n' >&2
    printf '  %s\n' "${missing[@]}" >&2
    echo "Install them (on Debian or Ubuntu, as root: apt-get install ${packages[*]}) and run this again." >&2
    exit 1
  fi
fi

want=$(sed -n 's/^go \([0-9.]*\)$/\1/p' go.mod build/*/go.mod | sort -V | tail -n 1)
if ! command -v go >/dev/null; then
  echo "make deps: go is missing; install Go $want or later from https://go.dev/dl/ (distributions' packages are often older)" >&2
  exit 1
fi
have=$(go env GOVERSION); have=${have#go}
if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
  echo "make deps: Go $have is too old; install Go $want or later from https://go.dev/dl/" >&2
  exit 1
fi
