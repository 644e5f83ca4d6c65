#!/bin/bash
# A search on a Cloud TPU, of one host or of a slice of several: the same command on every host. Call it from the
# checkout, of which all but .venv and runs is copied.
#
#   recipes/tpu_vm.sh NAME ZONE SHARE [CONFIG] [OPTIONS of scripts/meta_loop.py]
#
# NAME and ZONE are of a TPU VM that exists. SHARE is HOST:/PATH of an NFS share (Filestore) in its network, which holds
# the run directory: all processes have to see it, and a bucket has no file locks. Run it again to resume, also after the
# TPU was preempted and created anew.
#
# Tried: see docs/scaling.md.
set -eu

name=$1 zone=$2 share=$3
shift 3
config=${1:-experiments/quickstart.yaml}
[ $# -gt 0 ] && shift
run=/mnt/flyjax/$(basename "$config" .yaml)

on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"; }

archive=$(mktemp)
trap 'rm "$archive"' EXIT
tar -czf "$archive" --exclude=./.venv --exclude=./runs .
gcloud compute tpus tpu-vm scp --zone "$zone" --worker=all "$archive" "$name":flyjax.tar.gz
on_all "mountpoint -q /mnt/flyjax || { sudo apt-get install -qq -y nfs-common && sudo mkdir -p /mnt/flyjax && \
    sudo mount -t nfs $share /mnt/flyjax && sudo chmod 1777 /mnt/flyjax; }"
# Images of Ubuntu 22.04 have Python 3.10.
on_all "mkdir -p flyjax && cd flyjax && tar -xzf ../flyjax.tar.gz && curl -LsSf https://astral.sh/uv/install.sh | sh && \
    ~/.local/bin/uv venv -q --allow-existing --python 3.12 && ~/.local/bin/uv pip install -q -r requirements.txt 'jax[tpu]'"
on_all "cd flyjax && .venv/bin/python scripts/meta_loop.py $config --run $run --distributed $*"
