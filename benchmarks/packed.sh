#!/usr/bin/env bash
# `bench gpu` on a machine without a network: packed.sh FOLDER [OPTIONS OF gpu.py], in the repository's root.
#
# FOLDER holds site.tar.xz, the Python packages that the machine lacks, and comfy.tar.xz, with ComfyUI in its folder
# `new`. They are unpacked into GPU_PLACE. Results go to OUT.
set -eu
place=${GPU_PLACE:-${TMPDIR:-/tmp}/wan-gpu}
packed=$1
shift
for name in site comfy; do
    [ -d "$place/$name" ] || { mkdir -p "$place/$name" && tar -C "$place/$name" -xf "$packed/$name.tar.xz"; }
done
export PYTHONPATH="$place/site${PYTHONPATH:+:$PYTHONPATH}" WAN_COMFYUI="$place/comfy/new" HF_HUB_OFFLINE=1
export TRITON_CACHE_DIR="$place/triton" TORCHINDUCTOR_CACHE_DIR="$place/inductor"
exec "${GPU_PYTHON:-python3}" benchmarks/gpu.py --out "${OUT:-$place/out}" "$@"
