#!/usr/bin/env bash
# Builds the page into web/dist: the client as WebAssembly, with the files that use it.
#
#   web/build.sh
#
# Rust's target wasm32-unknown-unknown is taken from rustup where it is installed
# (`rustup target add wasm32-unknown-unknown`), and else built from Debian's packages
# rustc-web, cargo-web, rust-web-src and lld. `wasm-opt` makes the module smaller where it is found.
set -euo pipefail
cd "$(dirname "$0")/.."

target=wasm32-unknown-unknown
out=web/dist
flags='--cfg getrandom_backend="custom" -C target-feature=+simd128'
build=(build -p pi-web --lib --profile web --target "$target" --locked)

has_rustup_target() {
  local libraries
  libraries=$(rustc --print target-libdir --target "$target" 2>/dev/null) || return 1
  compgen -G "$libraries/libstd-*.rlib" >/dev/null
}

has_debian_packages() {
  [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && [ -d "$(debian_sources)" ] \
    && command -v wasm-ld >/dev/null
}

debian_sources() {
  echo "$(/usr/bin/rustc --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library"
}

if has_rustup_target; then
  CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=$flags cargo "${build[@]}"
elif has_debian_packages; then
  # What this builds is in a folder of its own: another compiler's files are of no use to it.
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/debian-web
  RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
    CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="$flags -C linker=wasm-ld" \
    /usr/bin/cargo "${build[@]}" -Z build-std=std,panic_abort
else
  cat >&2 <<'EOF'
web/build.sh: there is no Rust for WebAssembly here. Install one of the two:
  rustup target add wasm32-unknown-unknown
  sudo apt-get install rustc-web cargo-web rust-web-src lld    # Debian and Ubuntu
EOF
  exit 2
fi
module=${CARGO_TARGET_DIR:-target}/$target/web/pi_web.wasm

rm -rf "$out"
mkdir -p "$out"
cp web/page/* "$out/"
if command -v wasm-opt >/dev/null; then
  wasm-opt -O3 --enable-simd --enable-bulk-memory --enable-mutable-globals \
    --enable-nontrapping-float-to-int --enable-sign-ext --strip-debug "$module" -o "$out/client.wasm"
else
  install -m 644 "$module" "$out/client.wasm"
fi

compressed() {
  case $1 in
    *.png | *.gz | *.br) return ;;
  esac
  gzip -9 -n -k -f "$1"
  if command -v brotli >/dev/null; then
    brotli -f -q 11 -k "$1"
  fi
}
for file in "$out"/*; do
  compressed "$file"
done
printf '%s: %s\n' "$out" "$(cd "$out" && wc -c client.wasm* | sed '$d' | awk '{print $2, $1}' \
  | paste -sd, -)"
