#!/usr/bin/env bash
# Builds the image and tries it, without a daemon or a hub: `make docker-test`.
#
# buildah builds it on a base that debootstrap makes. It then runs in namespaces of its own, as by
#
#   docker run --read-only --tmpfs /tmp --network none -v $runs:/runs -v $data:/data gptjax ...
#
# with the image's own user, entry point and environment: train, SIGTERM, resume, sample. Needs
# root on Debian, and installs buildah and debootstrap; where it cannot, it says so and skips.
# Base and image stay in $DOCKER_TEST_DIR; remove it to start from nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${DOCKER_TEST_DIR:-/var/tmp/gptjax-docker-test}
suite=bookworm
export BUILDAH_ISOLATION=chroot DEBIAN_FRONTEND=noninteractive

say() { echo "docker-test [$SECONDS s]: $*"; }
skip() {
  echo "docker-test: skipped: $*"
  exit 0
}
fail() {
  echo "docker-test: FAILED: $*" >&2
  exit 1
}
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }

# --- what is needed

[ "$(id -u)" = 0 ] || skip "to build and run an image without a daemon, be root"
codename=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}") ||
  skip "its base comes from Debian, and this machine is none"
mkdir -p "$work"
exec 9>"$work/lock"
flock -n 9 || fail "another docker-test is running in $work"
log=$work/log
needed=()
for program in buildah debootstrap; do
  [ -n "$(type -P $program)" ] || needed+=("$program")
done
if [ ${#needed[@]} -gt 0 ]; then
  { apt-get update -q && apt-get install -qy --no-install-recommends "${needed[@]}"; } >"$log" 2>&1 ||
    skip "apt-get cannot install ${needed[*]} ($(tail -n 1 "$log"))"
fi
if ! buildah rm "$(buildah from scratch)" >/dev/null 2>&1; then
  export STORAGE_DRIVER=vfs # slower, but where there is no other
  buildah rm "$(buildah from scratch)" >"$log" 2>&1 ||
    skip "buildah cannot run here ($(tail -n 1 "$log"))"
fi
unshare --mount --pid --net --fork mount -t proc proc /proc 2>"$log" ||
  skip "namespaces cannot be made here ($(tail -n 1 "$log"))"
buildah rm --all >/dev/null # what a killed run left
rm -rf "$work"/try.*

# --- the base: from the mirror of this machine's own apt

if ! buildah inspect --type image localhost/base >/dev/null 2>&1; then
  mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' |
    awk -v suite="$codename" '$1 == suite && $2 == "main" { print $3; exit }')
  [ -n "$mirror" ] || skip "apt's sources name no mirror of Debian $codename"
  say "making a base of Debian $suite"
  rm -rf "$work/root"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    "$suite" "$work/root" "$mirror" >"$log" 2>&1 ||
    skip "debootstrap cannot make a base ($(tail -n 1 "$log"))"
  rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  # Whom this machine trusts: its way to the package index may lead through a proxy.
  cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
  container=$(buildah from scratch)
  buildah add -q "$container" "$work/root" / >/dev/null
  buildah commit -q "$container" localhost/base >/dev/null
  buildah rm "$container" >/dev/null
  rm -rf "$work/root"
fi

# --- the image

say "building the image"
buildah bud --build-arg BASE=localhost/base -t gptjax . >"$log" 2>&1 ||
  { tail -n 30 "$log" >&2; fail "the image cannot be built"; }
buildah rmi --prune >/dev/null # the one before
size_of() { buildah images --format '{{.Size}}' "localhost/$1"; }
say "image size: $(size_of gptjax), of which its base has $(size_of base)"

container=$(buildah from gptjax)
try=$(mktemp -d "$work/try.XXXX")
chmod 755 "$try"
cleanup() {
  [ -z "$(jobs -p)" ] || kill -9 $(jobs -p) 2>/dev/null || true
  buildah rm "$container" >/dev/null
  rm -rf "$try"
}
trap cleanup EXIT
image=$(buildah mount "$container")
runs=$try/runs data=$try/data
config() { buildah inspect --type image --format "$1" localhost/gptjax; }
mapfile -t environment < <(config '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' | sed '/^$/d')
entrypoint=$(config '{{index .OCIv1.Config.Entrypoint 0}}')
workdir=$(config '{{.OCIv1.Config.WorkingDir}}')
user=$(config '{{.OCIv1.Config.User}}')
say "user $user, entry point $entrypoint, folder $workdir"

# As process 1 of new namespaces: makes the file systems of a container, and becomes its program.
inside() {
  local image=$1 runs=$2 data=$3 user=$4 workdir=$5
  shift 5
  mount --bind "$image" "$image"
  mount -t proc proc "$image/proc"
  mount -t sysfs -o ro sysfs "$image/sys"
  mount --rbind /dev "$image/dev"
  mount -t tmpfs -o noexec,nosuid,nodev tmpfs "$image/tmp"
  mount --bind "$runs" "$image/runs"
  mount --bind "$data" "$image/data"
  mount -o remount,bind,ro "$image"
  exec chroot --userspec="$user" --groups= "$image" /usr/bin/env -i -C "$workdir" "$@"
}
export -f inside

# On one core, where a run repeats itself to the bit. Takes the place of the (sub)shell that calls
# it: in the background, $! is of unshare.
core=$(taskset -pc $$ | sed 's/.*[ ,-]//')
docker_run() {
  exec taskset -c "$core" unshare --mount --pid --net --fork --kill-child bash -euc 'inside "$@"' - \
    "$image" "$runs" "$data" "$user" "$workdir" "${environment[@]}" "$entrypoint" "$@"
}

# --- permissions

mkdir -p "$runs" "$data"
cat README.md LICENSE >"$data/text.txt"
[ "$(docker_run id -u)" = 1000 ] || fail "the user is not 1000"
for place in /x /app/x /app/gptjax/x /opt/venv/x; do
  (docker_run touch $place) >"$log" 2>&1 && fail "$place can be written"
  grep -q "Read-only file system" "$log" || fail "$(cat "$log")"
done
code=0
(docker_run train --config configs/debug.py) >"$log" 2>&1 || code=$?
[ $code = 2 ] && [ "$(wc -l <"$log")" = 1 ] && grep -q "^error: /runs cannot be written" "$log" ||
  fail "a folder of root's at /runs: exit code $code, $(cat "$log")"
cat "$log"
chown 12345:12345 "$runs" "$data"
few=(--config configs/debug.py --data.path data/text.txt --train.eval-batches 2)
few+=(--train.sample-tokens 40)
(user=12345:12345 docker_run train "${few[@]}" --train.max-steps 10 --run-dir runs/other) \
  >"$log" 2>&1 || fail "--user 12345: $(cat "$log")"
[ "$(stat -c %u "$runs/other/config.json")" = 12345 ] || fail "--user 12345 wrote as another"
chown -R "$user" "$runs" "$data"
say "not root; no file can be written but in /runs, /data and /tmp; --user works"

# --- train, SIGTERM, resume, sample

few+=(--train.eval-interval 1000)
say "train"
docker_run train "${few[@]}" --train.max-steps 1000000 --run-dir runs/stopped >"$try/train.log" 2>&1 &
outside=$!
for _ in $(seq 1200); do
  kill -0 $outside 2>/dev/null || fail "$(cat "$try/train.log")"
  ! grep -q '"step": 200, .*train_loss' "$runs/stopped/metrics.jsonl" 2>/dev/null || break
  sleep 0.1
done
first=$(cat /proc/$outside/task/$outside/children)
first=${first// /}
grep -q "^NSpid:.*[[:space:]]1$" "/proc/$first/status" || fail "process $first is not PID 1 inside"
grep -q "^Uid:[[:space:]]1000[[:space:]]" "/proc/$first/status" || fail "PID 1 is not user 1000"
tr '\0' ' ' <"/proc/$first/cmdline" | grep -q "python.*/gptjax train " || fail "PID 1 is no trainer"
say "SIGTERM to process 1, the trainer"
before=$SECONDS code=0
kill -TERM "$first"
wait $outside || code=$?
cat "$try/train.log"
[ $code = 143 ] || fail "SIGTERM: exit code $code, not 143"
[ $((SECONDS - before)) -le 10 ] || fail "stopping took $((SECONDS - before)) s, more than Docker's 10"
step=$(sed -n 's/^SIGTERM: saved step \([0-9]*\);.*/\1/p' "$try/train.log")
[ -d "$runs/stopped/checkpoints/$step" ] || fail "no checkpoint of step '$step'"
say "exit code 143 after $((SECONDS - before)) s, with step $step saved"

last=$((step + 200))
say "resume to step $last"
(docker_run train "${few[@]}" --train.max-steps $last --run-dir runs/stopped --resume) \
  >"$try/resume.log" 2>&1 || fail "$(cat "$try/resume.log")"
cat "$try/resume.log"
grep -q "^continuing at step $step$" "$try/resume.log" || fail "it did not continue at $step"
[ -d "$runs/stopped/checkpoints/$last" ] || fail "no checkpoint of step $last"

say "the same without a stop, to compare"
(docker_run train "${few[@]}" --train.max-steps $last --run-dir runs/whole) >"$log" 2>&1 ||
  fail "$(cat "$log")"
(docker_run python - "$step" "$last") <<'PYTHON' || fail "the losses do not continue"
import json, sys
stop, last = map(int, sys.argv[1:])
losses = {}
for name in ("stopped", "whole"):
    rows = [json.loads(line) for line in open(f"/runs/{name}/metrics.jsonl")]
    losses[name] = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
print("step   train_loss, stopped and resumed   without a stop")
for (step, ours), (_, theirs) in zip(losses["stopped"], losses["whole"]):
    if abs(step - stop) <= 30 or step in (10, last):
        print(f"{step:5}  {ours:<32}  {theirs}{'   resumed' * (0 <= step - stop < 10)}")
assert [step for step, _ in losses["whole"]] == list(range(10, last + 1, 10))
assert losses["stopped"] == losses["whole"], "they differ"
assert losses["whole"][-1][1] < losses["whole"][0][1] - 0.5, "nothing was learned"
PYTHON
say "the losses are those of a run without a stop, to the bit"

say "sample"
text=$(docker_run sample runs/stopped --prompt "train" --max-new-tokens 80 --temperature 0.5)
echo "$text"
[ ${#text} -ge 80 ] || fail "sample wrote $text"
say "doctor"
(docker_run doctor) || fail "the doctor finds problems"
say "passed: train, SIGTERM, resume, sample"
