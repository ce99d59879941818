#!/bin/sh
# Runs `gptjax COMMAND ...`, or another program of the image. The program replaces this shell, so
# it is process 1 and gets the SIGTERM of `docker stop`.
set -eu

usage="usage: docker run [--gpus all] -v \$PWD/runs:/runs -v gptjax-data:/data gptjax COMMAND ...
Files go to /runs and /data, so mount both. Any other program of the image also runs: python, sh ..."

command="${1:---help}"
[ $# -eq 0 ] || shift

case "$command" in
  train | quantize | export | import | page)
    # Docker makes a missing mount point as root.
    runs="${RUNS:-/runs}"
    if [ ! -w "$runs" ]; then
      owner=$(stat -c %u "$runs" 2>/dev/null || echo nobody)
      echo "error: $runs cannot be written by user $(id -u), its owner is user $owner; make the" \
        "folder before you mount it, or run with --user \$(id -u):\$(id -g)" >&2
      exit 2
    fi
    ;;
esac

case "$command" in
  help | -h | --help)
    echo "$usage"
    exec gptjax --help
    ;;
  train | sample | evaluate | quantize | export | import | prepare | plot | page | doctor)
    exec gptjax "$command" "$@"
    ;;
esac
if ! command -v "$command" >/dev/null; then
  exec gptjax "$command" # which names the nearest command
fi
exec "$command" "$@"
