#!/bin/sh
# Builds pi-train with CUDA, as one stripped binary that runs on a bare machine with a driver, NVRTC and the CUDA headers.
#
#     trainer/cuda/build.sh [OUTPUT]         (OUTPUT: target/cuda/pi-train unless given)
#
# On the machine with the GPU: CUDA_PATH names the toolkit, and its lib64 is on LD_LIBRARY_PATH.
#
# burn's CUDA back end has two compilers: CUDA C++ by way of NVRTC, loaded at run time, and LLVM, whose crate (cubecl-llvm)
# downloads a built LLVM from a release page in its build script. This build uses the first and replaces that crate by
# stand-in/, which has its types and compiles nothing, so package registries suffice. Drop the stand-in once cubecl-cuda makes
# its LLVM back end optional.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
output=${1:-$root/target/cuda/pi-train}
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/cuda}
export CARGO_TARGET_DIR
# Bindings of CUDA 13.0: by default the newest are built in, which an older driver lacks functions of.
export CUDARC_CUDA_VERSION="${CUDARC_CUDA_VERSION:-13000}"

# The stand-in must have the version that the lock file names, else cargo does not take it; and the lock file of the default
# build must not learn of it.
version=$(sed -n '/^name = "cubecl-llvm"$/{n;s/^version = "\(.*\)"$/\1/p;}' Cargo.lock)
stand_in=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/stand-in/Cargo.toml")
if [ "$version" != "$stand_in" ]; then
    echo "trainer/cuda/stand-in is cubecl-llvm $stand_in, Cargo.lock has ${version:-none}: bring the stand-in up to it" >&2
    exit 1
fi
lock=$(mktemp)
cp Cargo.lock "$lock"
trap 'cp "$lock" Cargo.lock; rm -f "$lock"' EXIT
trap 'exit 130' INT TERM

cargo build --release -p pi-trainer --bin pi-train --features cuda \
    --config "patch.crates-io.cubecl-llvm.path=\"$here/stand-in\""

mkdir -p "$(dirname "$output")"
strip -o "$output.part" "$CARGO_TARGET_DIR/release/pi-train"
mv "$output.part" "$output"
ls -l "$output"
