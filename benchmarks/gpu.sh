#!/usr/bin/env bash
# Every figure that wants a GPU, part by part; each writes JSON under docs/benchmarks/ (or $OUT).
#
#   benchmarks/gpu.sh env|parity|race|recipe|best|ablate|g2p|digits|decode|quant|scaling|all
#
# TINY=1 runs the same commands at sizes that a CPU finishes in a minute, to try the script.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-docs/benchmarks}
out=$OUT
python=${PYTHON:-python3}
tag=gpu
small=()
steps=()
rounds=7
tokens=255
recipes=(--recipe configs/gpt_fast.py --recipe configs/gpt_best.py)
best=(gpt_fast gpt_best-1 gpt_best-2 gpt_best-3)
g2p=(g2p)
digits=(digits)
ladder=(gpu)
quant=(seed gpt2)
scaling=(--config configs/gpt2_124m.py --train.batch-size 64 --train.micro-batch-size 16)
if [ -n "${TINY:-}" ]; then
  tag=tiny
  small=(--model.n-layer 2 --model.n-head 2 --model.n-embd 32 --model.block-size 32)
  small+=(--train.batch-size 4)
  steps=(--train.max-steps 20 --train.eval-interval 10 --train.eval-batches 2)
  rounds=1
  tokens=16
  recipes=(--recipe configs/debug.py)
  best=(debug)
  g2p=(g2p_debug)
  digits=(digits_debug)
  ladder=(short --steps 3)
  quant=(tiny)
  scaling=(--config configs/debug.py)
fi
compare() { "$python" -m benchmarks.compare "$@" --config configs/gpt.py "${small[@]}"; }

part() {
  echo "== $1"
  case "$1" in
    env)
      nvidia-smi || echo "no NVIDIA GPU"
      "$python" -c 'import json; from benchmarks import environment; print(json.dumps(environment.describe(), indent=1))' | tee "$out/environment-$tag.json"
      ;;
    parity) compare parity --json "$out/parity-$tag.json" ;;
    race) compare race --rounds "$rounds" --json "$out/race-gpt-$tag.json" ;;
    decode) compare sample --rounds "$rounds" --tokens "$tokens" --json "$out/decode-$tag.json" ;;
    quant) "$python" -m benchmarks.quant decode "${quant[@]}" --tag "$tag" ;;
    recipe)
      compare train --json "$out/quality-gpt-$tag.json" "${steps[@]}" \
        "${recipes[@]}"
      ;;
    best) "$python" -m benchmarks.expected "${best[@]}" ;;
    g2p) "$python" -m benchmarks.expected "${g2p[@]}" ;;
    digits) "$python" -m benchmarks.expected "${digits[@]}" ;; # FSDD=FOLDER where GitHub is not reachable
    ablate) "$python" -m benchmarks.ablate "${ladder[@]}" --json "$out/ablate-$tag.json" ;;
    scaling) # not a part of all: wants two GPUs or more
      for axis in data fsdp model; do
        for kind in weak strong; do
          "$python" -m benchmarks.scaling "$kind" --axis "$axis" "${scaling[@]}" --json "$out/scaling-$kind-$axis-$tag.json"
        done
      done
      ;;
    all) for name in env parity race decode quant recipe best g2p digits ablate; do part "$name"; done ;;
    *) echo "usage: benchmarks/gpu.sh env|parity|race|recipe|best|ablate|g2p|digits|decode|quant|scaling|all" >&2; exit 2 ;;
  esac
}
mkdir -p "$out"
part "${1:-}"
