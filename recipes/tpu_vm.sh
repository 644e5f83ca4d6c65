#!/bin/bash
# A search on a Cloud TPU, of one host or of a slice of several: the same command on every host.
#
#   recipes/tpu_vm.sh NAME ZONE BUCKET [CONFIG] [OPTIONS of scripts/meta_loop.py]
#
# NAME and ZONE are of a TPU VM that exists. BUCKET holds the run directory, mounted on all hosts by Cloud Storage FUSE,
# since all processes have to see it. Run it again to resume, also after the TPU was preempted and created anew.
#
# Not tried on a TPU. What it calls was: the processes meet by JAX's detection of the slice, for which here
# --coordinator, --process and --processes stood in. An object store has no file locks: start one run per directory.
set -eu

name=$1 zone=$2 bucket=$3
shift 3
config=${1:-experiments/quickstart.yaml}
[ $# -gt 0 ] && shift
run=/mnt/$bucket/$(basename "$config" .yaml)

on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"; }

gcloud compute tpus tpu-vm scp --recurse --zone "$zone" --worker=all ./ "$name":flyjax
on_all "sudo mkdir -p /mnt/$bucket && sudo chown \$USER /mnt/$bucket && \
    (mountpoint -q /mnt/$bucket || gcsfuse $bucket /mnt/$bucket)"
on_all "cd flyjax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"
on_all "cd flyjax && .venv/bin/python scripts/meta_loop.py $config --run $run --distributed $*"
