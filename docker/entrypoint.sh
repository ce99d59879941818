#!/bin/sh
# The commands of gptjax by their short names: `docker run gptjax train --config ...`. Each takes
# the place of this shell, so that it is process 1 and a SIGTERM from `docker stop` reaches it.
set -eu

usage="usage: docker run [--gpus all] -v \$PWD/runs:/runs -v gptjax-data:/data gptjax COMMAND ...
  train --config configs/gpt_cpu.py           train, or continue, into /runs/gpt_cpu
  sample runs/gpt_cpu --prompt ROMEO:         let it write
  evaluate, quantize, export, importers       as python -m gptjax.COMMAND
  report plot runs/gpt_cpu --out runs/a.png   draw loss curves
  texts prepare --out data/tokens FILE        a large corpus as token files
  doctor                                      versions, devices, speed: for a bug report
COMMAND --help lists the options. Any other program of the image runs, too: python, sh, ..."

app=$(dirname "$(dirname "$0")")
command="${1:-help}"
[ $# -eq 0 ] || shift

case "$command" in
  train | quantize | export | importers)
    # Docker makes a folder that it is to mount, and is not there, as root.
    runs="${RUNS:-/runs}"
    if [ ! -w "$runs" ]; then
      owner=$(stat -c %u "$runs" 2>/dev/null || echo nobody)
      echo "error: $runs cannot be written by user $(id -u), it is of user $owner; make the folder" \
        "that you mount there yourself, or run with --user \$(id -u):\$(id -g)" >&2
      exit 2
    fi
    ;;
esac

case "$command" in
  help | -h | --help)
    echo "$usage"
    exit 0
    ;;
  train | sample)
    set -- python "$app/$command.py" "$@"
    ;;
  doctor | espeak | evaluate | export | importers | quantize | report | texts)
    set -- python -m "gptjax.$command" "$@"
    ;;
  *)
    if ! command -v "$command" >/dev/null; then
      echo "error: $command is no command of gptjax; help lists them" >&2
      exit 2
    fi
    set -- "$command" "$@"
    ;;
esac
exec "$@"
