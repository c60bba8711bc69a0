#!/bin/bash
# Trains on several machines without a scheduler: run this on each of them.
#   FIRST=host-of-the-first-machine NODES=2 NODE=0 docs/examples/train_nodes.sh store=... out=...
# NODE is the machine's number; the first is 0. The folder of the run and the stores must be seen
# by all machines. Run the same commands again to go on after a stop.
set -euo pipefail
: "${FIRST:?the host name of the first machine}" "${NODES:?how many machines}" "${NODE:?0, 1, ...}"

settings=(
  core_loop.checkpointing=true
  core_loop.async_save=true
  core.workers=4
  memory_gb=32
)

# --nproc_per_node=gpu starts one process a GPU; "$@" comes last, so it wins.
torchrun \
  --nnodes="$NODES" \
  --node_rank="$NODE" \
  --nproc_per_node=gpu \
  --master_addr="$FIRST" \
  --master_port="${PORT:-29500}" \
  -m worldmodel train "${settings[@]}" "$@"
