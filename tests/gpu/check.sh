#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can show, in under five minutes: a table with a row for each check.
#   tests/gpu/check.sh     from any folder; PYTHON names the interpreter, else the checkout's .venv or python3
# Packages may be found by PYTHONPATH alone, and pytest's plugin xdist may be missing.
# Exit code: 0 when all is well, 1 when a row failed (its log is kept), 3 where torch sees no GPU.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" > /dev/null || python=python3
if ! paths=$("$python" -c 'import os, sys, torch
print(os.pathsep.join(filter(None, sys.path)))
sys.exit(not torch.cuda.is_available())' 2> /dev/null); then
  echo "error: torch sees no GPU here ($python): run this on a machine with one, or name another interpreter with PYTHON" >&2
  exit 3
fi
# Absolute, since the rows run in other folders; runs write into the work folder.
export PYTHONPATH="$root:$paths" MLFLOW_DISABLE_TELEMETRY=true RAY_USAGE_STATS_ENABLED=0
work=$(mktemp -d) && cd "$work" || exit 3

row() { # NAME SECONDS RUNS COMMAND…: within the limit and what is left of five minutes; RUNS is how many runs must have used a GPU
  local name=$1 limit=$2 runs=$3 left=$((290 - SECONDS)) start=$SECONDS result=ok code=0 on_gpu
  shift 3
  if ((left < limit)); then limit=$left; fi
  if ((limit <= 0)); then
    result="no time"
  else
    timeout --kill-after=5 "$limit" "$@" > "$name.log" 2>&1 < /dev/null || code=$?
    # A run on a GPU notes that GPU's memory with each epoch.
    on_gpu=$(grep -rls perf/gpu_mem_mb "$name" | grep -o '.*/spool/' | sort -u | wc -l)
    if ((code == 124 || code == 137)); then
      result="over $limit s"
    elif ((code != 0)); then
      result="exit $code"
    elif ((on_gpu != runs)); then
      result="$on_gpu/$runs on GPU"
    fi
  fi
  printf '%-10s %-12s %4d s  %s\n' "$name" "$result" "$((SECONDS - start))" "$(tail -n 1 "$name.log" | cut -c 1-100)" | tee -a table
}

# Without the settings that name plugins.
pytest=("$python" -m pytest -o addopts= -q --import-mode=importlib -p no:cacheprovider -c "$root/pyproject.toml" "$root/tests/gpu")
pipeline=("$python" -m pipeline)
where=(--data-root "$work/data" --tracking-uri)
short=(--split tune --set schedule.epochs=3 "${where[@]}" "sqlite:///$work/mlflow.db")
cpus=$(nproc) && eight=$((cpus < 8 ? cpus : 8))
printf '%s\n' "base: synthetic" "split: tune" "fixed: {schedule.epochs: 3, schedule.compile: graphs}" "seeds: [0, 1, 2, 3]" \
  "base_name: agreeing" "variants: {alone: {loss.agreement: 0}}" "primary: ausuc" > eight.yaml

row data 60 0 "${pipeline[@]}" data make synthetic --out "$work/data" --per-class 20 --workers "$eight"
{
  row tests 90 0 "${pytest[@]}" -m "not heavy" -k "not nccl"
  row nccl 40 0 "${pytest[@]}" -m "not heavy" -k nccl
  row compiled 150 0 "${pytest[@]}" -m "heavy and not long"
} &
row ray-train 80 1 "${pipeline[@]}" train synthetic --workers 1..2 --gpus-per-worker 1 "${short[@]}" --storage ray-train
row fraction 70 1 "${pipeline[@]}" train synthetic --gpus-per-worker 0.125 "${short[@]}" --storage fraction --set schedule.compile=graphs
# A store of their own, in which none of them is finished.
row eight 90 8 "${pipeline[@]}" ablate eight.yaml --gpus-per-worker 0.125 --cpus-per-worker 1 --concurrency "$eight" \
  "${where[@]}" "sqlite:///$work/eight.db" --storage eight
wait # The benchmark has the machine to itself.
row cells 90 0 "$python" -m benchmarks.cells eight.yaml --slots "$((eight < 4 ? eight : 4))" --data-root "$work/data"

printf '\nall rows, after %d s:\n%s\n' "$SECONDS" "$(cat table)"
if grep -qv '^[a-z-]* *ok ' table; then
  echo "error: a row failed; the logs are in $work" >&2
  exit 1
fi
cd / && rm -rf "$work"
