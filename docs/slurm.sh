#!/bin/bash
# A training on two nodes of eight GPUs, which queues itself again until it is done: sbatch docs/slurm.sh FOLDER
#SBATCH --job-name=atnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
run="runs/$SLURM_JOB_NAME-$SLURM_JOB_ID"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if compgen -G "$run/checkpoints/step-*.pt" > /dev/null; then
    words=(--resume "$run")
else
    words=(recipes/imagenet_xxxs.yaml --data "$1" --out "$run")
fi
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m atnet train "${words[@]}"
if [ ! -f "$run/record.json" ] && compgen -G "$run/checkpoints/step-*.pt" > /dev/null; then
    scontrol requeue "$SLURM_JOB_ID"
fi
