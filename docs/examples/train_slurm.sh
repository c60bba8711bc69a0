#!/bin/bash
# Trains on several machines of a SLURM cluster:
#   sbatch docs/examples/train_slurm.sh store=data/doom.zarr out=runs/base model=base
# The folder of the run and the stores must be seen by all machines. A job that was stopped or
# killed goes on where its last state was: submit it again, or leave it to --requeue.
#SBATCH --job-name=worldmodel
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

settings=(
  core_loop.checkpointing=true
  core_loop.async_save=true
  core.workers=4
  memory_gb=32
  watch.validate_every=1000
  watch.images_every=1000
)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One torchrun a machine; each starts one process a GPU. "$@" comes last, so it wins.
srun torchrun \
  --nnodes="$SLURM_NNODES" \
  --nproc_per_node="$SLURM_GPUS_ON_NODE" \
  --rdzv_id="$SLURM_JOB_ID" \
  --rdzv_backend=c10d \
  --rdzv_endpoint="$first:29500" \
  -m worldmodel train "${settings[@]}" "$@"
