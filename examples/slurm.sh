#!/bin/bash
# An array job: each task summarizes its share of one folder.
#   sbatch --array=1-64 examples/slurm.sh /archive/videos /archive/summaries
#SBATCH --job-name=vsum
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60
set -euo pipefail
exec vsum-summarize "$1" -o "$2" --recursive --shard auto --threads "$SLURM_CPUS_PER_TASK" --report "$2/report-$SLURM_ARRAY_TASK_ID.jsonl"
