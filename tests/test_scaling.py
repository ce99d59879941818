"""The plan on paper, the collectives read out of compiled programs, and the files for clusters."""

import dataclasses
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import jax
import jax.numpy as jnp
import pytest
import yaml
from conftest import TINY, VOCAB_SIZE
from jax._src.clusters.k8s_cluster import K8sCluster
from jax._src.clusters.slurm_cluster import SlurmCluster
from jax.sharding import AbstractMesh

from benchmarks import hlo, plan, scaling
from gptjax import models, optim, training
from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_files import load_file
from gptjax.scale import memory, sharding
from gptjax.scale.mesh import AXES

ROOT = Path(__file__).parent.parent
GPT2 = plan.SIZES[1]

# --- the plan


def test_parameters_are_counted():
    assert plan.parameters(GPT2.model, GPT2.vocab_size)[0] == 124_439_808  # as GPT-2 has
    deep = dataclasses.replace(TINY, n_layer=5)
    shapes = jax.eval_shape(lambda: models.init(models.GPT(deep, VOCAB_SIZE), 0))
    assert plan.parameters(deep, VOCAB_SIZE)[0] == models.count(shapes)


def test_a_device_holds_its_share_of_the_state():
    """Without sequences to speak of, memory is state and weights at work."""
    nothing = dataclasses.replace(GPT2, batch_size=0)
    n_parameters, block = plan.parameters(GPT2.model, GPT2.vocab_size)
    whole = plan.memory(nothing, plan.Layout(8, 1, 1))
    assert whole == (4 + 8 + 4 + 2) * n_parameters
    shared = plan.memory(nothing, plan.Layout(1, 8, 1, n_micro=2))
    outside = n_parameters - 12 * block
    assert shared == (4 + 8 + 4 + 4) * n_parameters / 8 + 2 * (outside + 2 * block)


def test_remat_and_micro_batches_save_memory():
    plain = plan.memory(GPT2, plan.Layout(8, 1, 1))
    assert plan.memory(GPT2, plan.Layout(8, 1, 1, n_micro=2)) < plain
    assert plan.memory(GPT2, plan.Layout(8, 1, 1, remat=True)) < plain


@pytest.mark.slow
def test_the_estimate_of_memory_is_that_of_the_compiled_step():
    """XLA counts the arrays of a step exactly, and what it allocates to work in, on one device."""
    size = plan.Size("small", plan.gpt2(2, 4, 64, 64), 1024, 32)
    compiled, state = scaling.compile_step(size, plan.Layout(1, 1, 1, n_micro=2))
    model = models.GPT(size.model, size.vocab_size)
    config = Config(size.model, train=TrainConfig(batch_size=32))
    held, work = memory.estimate(config, model, state, 16, 64)
    in_xla = compiled.memory_analysis()
    batch = 3 * 4 * 32 * 64 + 4  # tokens, targets, weights; the number of steps
    assert in_xla.argument_size_in_bytes == held + batch
    assert in_xla.temp_size_in_bytes == pytest.approx(work, rel=0.25)


@pytest.mark.slow
def test_kernels_keep_neither_attention_weights_nor_float32_logits():
    size = plan.Size("small", plan.gpt2(2, 4, 64, 64), 1024, 32)
    _, state = scaling.compile_step(size, plan.Layout(1, 1, 1))
    model = models.GPT(size.model, size.vocab_size, jnp.bfloat16)
    config = Config(size.model, train=TrainConfig(batch_size=32))
    plain, fused = (memory.estimate(config, model, state, 32, 64, f)[1] for f in (False, True))
    weights = 2 * 3 * 32 * 2 * 4 * 64 * 64  # bytes, copies, rows, layers, heads, T, T
    logits = (3 * 4 - 2 * 2) * 32 * 64 * 1024
    assert plain - fused == weights + logits


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_the_plan_and_train_py_agree_on_memory(shape):
    """But for what is rounded to whole shards."""
    layout = plan.Layout(*shape, n_micro=4)
    train = TrainConfig(batch_size=64, micro_batch_size=16)
    size = dataclasses.replace(GPT2, batch_size=64)
    model = models.build(size.model, size.vocab_size, jnp.bfloat16)
    optimizer = optim.build(OptimConfig(), 10)
    shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 0), optimizer))
    mesh: Any = AbstractMesh(shape, AXES)
    state = sharding.with_sharding(shapes, sharding.shardings(shapes, mesh))
    config = Config(size.model, train=train)
    estimate = sum(memory.estimate(config, model, state, 16, size.model.block_size))
    assert plan.memory(size, layout) == pytest.approx(estimate, rel=1e-3)


def test_gpt2_124m_says_what_the_arithmetic_says():
    path = ROOT / "configs/gpt2_124m.py"
    config, text = load_file(path), " ".join(path.read_text().split())
    assert config.model == GPT2.model
    assert config.train.batch_size == GPT2.batch_size
    tokens = config.train.max_steps * GPT2.batch_tokens
    operations = scaling.flops_per_token(config.model, GPT2.vocab_size)
    hours = tokens * operations / (8 * plan.PEAK) / 3600
    n_micro = config.train.batch_size // config.train.micro_batch_size
    held = plan.memory(GPT2, plan.Layout(8, 1, 1, n_micro))
    assert f"{tokens / 1e9:.0f} billion tokens of {operations / 1e6:.0f} MFLOP" in text
    assert f"Eight H100s at their peak need {hours:.0f} hours" in text
    assert f"{config.train.micro_batch_size // 8} sequences need about {held / 1e9:.0f} GB" in text
    assert "124,439,808 parameters" in text


@pytest.mark.parametrize("axis", ["data", "fsdp"])
@pytest.mark.parametrize("link", plan.LINKS.values())
def test_at_the_threshold_sending_takes_as_long_as_computing(axis, link):
    """For a device among many, by the definitions of both, and attention's matmuls aside."""
    tokens = plan.tokens_to_hide(link, axis)
    n_parameters, _ = plan.parameters(GPT2.model, GPT2.vocab_size)
    layout = plan.Layout(**{"data": 1, "fsdp": 1, "model": 1} | {axis: 10**6})
    sending = plan.sent(GPT2, layout)[axis]
    if axis == "data":
        assert sending == pytest.approx(4 * n_parameters, rel=1e-5)
    assert 6 * n_parameters * tokens / plan.PEAK == pytest.approx(sending / link, rel=1e-5)


def test_the_share_of_the_model_axis_is_that_of_the_cost():
    """Blocks alone: with so small a vocabulary and block there is nothing else."""
    model = plan.gpt2(50, 32, 4096, block_size=1)
    size = plan.Size("blocks", model, 8, 8 * 64)
    cost = plan.cost(size, plan.Layout(1, 1, 8))
    share = plan.model_axis_share(4096, 8)
    assert cost.model / cost.compute == pytest.approx(share, rel=0.02)


def test_links_between_nodes_are_slower_than_inside():
    assert plan.bandwidth(1, 8) == plan.NVLINK
    assert plan.bandwidth(1, 16) == 8 * plan.INFINIBAND  # all eight ports of a node
    assert plan.bandwidth(8, 2) == plan.INFINIBAND  # one device of each node
    assert plan.bandwidth(2, 8) == 4 * plan.INFINIBAND


@pytest.mark.parametrize("size", plan.SIZES, ids=lambda size: size.name)
@pytest.mark.parametrize("n_devices", [1, 8, 64])
def test_the_chosen_layout_fits_and_no_other_is_faster(size, n_devices):
    best = plan.choose(size, n_devices)
    limit = plan.MEMORY["H100"]
    fitting = [one for one in plan.layouts(size, n_devices) if plan.memory(size, one) <= limit]
    if best is None:
        assert not fitting
        return
    assert best.devices == n_devices
    assert best in fitting
    fastest = min(plan.cost(size, one).step for one in fitting)
    assert plan.cost(size, best).step <= 1.02 * fastest
    assert 0 < plan.mfu_bound(size, best) <= 1


# --- collectives in HLO

MODULE = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %y = (f32[8,4]{1,0}, /*index=1*/bf16[6]{0}) all-reduce(%x, %z), replica_groups=GROUPS
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %loop = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body, TIMES
  ROOT %whole = f32[16,4]{1,0} all-gather(%q), replica_groups={}, dimensions={0}
}
"""


TIMES = 'backend_config={"known_trip_count":{"n":"3"}}'


def module(groups: str) -> str:
    return MODULE.replace("GROUPS", groups).replace("TIMES", TIMES)


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", ((0, 2), (1, 3))),
        ("mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", ((0, 1), (2, 3))),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", ((0, 1, 2, 3),)),
    ],
)
def test_groups_of_devices_are_read_however_they_are_written(written, groups):
    in_loop, at_end = hlo.collectives(module(written))
    assert in_loop == hlo.Collective("all-reduce", 8 * 4 * 4 + 6 * 2, groups, count=3)
    assert at_end == hlo.Collective("all-gather", 16 * 4 * 4, ((0, 1, 2, 3),), count=1)


def test_what_a_ring_sends():
    groups = ((0, 1, 2, 3),)
    assert hlo.Collective("all-gather", 400, groups, 2).sent == 2 * 300
    assert hlo.Collective("all-reduce", 400, groups, 1).sent == 2 * 300
    assert hlo.Collective("collective-permute", 400, ((0, 1), (1, 0)), 1).sent == 400


def test_groups_lie_along_axes():
    mesh = {"data": 2, "fsdp": 1, "model": 2}
    assert hlo.Collective("all-reduce", 4, ((0, 2), (1, 3)), 1).axes(mesh) == "data"
    assert hlo.Collective("all-reduce", 4, ((0, 1), (2, 3)), 1).axes(mesh) == "model"
    assert hlo.Collective("all-reduce", 4, ((0, 1, 2, 3),), 1).axes(mesh) == "data+model"


@pytest.mark.parametrize("written", ["mesh['a'=4] {'a':(1)2}", "@groups"])
def test_what_is_not_understood_is_not_guessed(written):
    with pytest.raises(ValueError, match="not understood"):
        hlo.collectives(module(written))
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("module @jit_step {}")


KNOWN = """
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
from benchmarks import hlo

jax.config.update("jax_num_cpu_devices", 8)
mesh = jax.make_mesh((2, 4), ("a", "b"), (AxisType.Auto,) * 2)

@jax.shard_map(mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
def known(x_N):  # 64 numbers on each device
    def body(x_N, _):
        x_N = jnp.sin(lax.psum(x_N, "b"))
        x_N = jnp.sin(lax.all_gather(x_N, "a", tiled=True)[::2])
        x_N = jnp.sin(jnp.tile(lax.psum_scatter(x_N, "b", tiled=True), 4))
        x_N = jnp.sin(lax.ppermute(x_N, "a", [(0, 1), (1, 0)]))
        x_N = jnp.sin(lax.all_to_all(x_N, "b", 0, 0, tiled=True))
        return x_N, None
    return lax.scan(body, x_N, length=5)[0]

text = jax.jit(known).lower(jnp.zeros(512)).compile().as_text()
for one in hlo.collectives(text):
    print(one.kind, one.count, one.bytes, one.axes({"a": 2, "b": 4}), round(one.sent))
"""


@pytest.mark.slow
def test_collectives_of_a_known_program():
    """Each of the five kinds runs five times, in groups and sizes that we know."""
    ran = forked.run("-c", KNOWN, n_devices=8)
    assert ran.returncode == 0, ran.stderr
    assert Counter(ran.stdout.splitlines()) == Counter(
        [
            "all-reduce 5 256 b 1920",
            "all-gather 5 512 a 1280",
            "reduce-scatter 5 256 b 960",
            "collective-permute 5 256 a 1280",
            "all-to-all 5 256 b 960",
        ]
    )


SMALL = """
from benchmarks import plan, scaling
scaling.SIMULATED = plan.Size("small", plan.gpt2(1, 4, 64, 16), 64, 16)
scaling.LAYOUTS = [plan.Layout(1, 1, 1, 2), plan.Layout(2, 2, 2, 2)]
scaling.main(["simulate", "--json", FILE])
"""


@pytest.mark.slow
def test_a_compiled_step_sends_about_what_arithmetic_says(tmp_path):
    file = tmp_path / "small.json"
    ran = forked.run("-c", SMALL.replace("FILE", repr(str(file))))
    assert ran.returncode == 0, ran.stderr
    one, shared = json.loads(file.read_text())["rows"]
    assert not one["sent"]
    assert shared["state_bytes"] <= 1.05 / 4 * one["state_bytes"]
    # Over model: six all-reduces of (B, T, D) for the block where four would do, two around it, and
    # little else. Were the residual stream split, it would be gathered, too, and exchanged.
    on_paper = shared["on_paper"]["model"]
    assert shared["sent"]["model"] == pytest.approx(on_paper * 8 / 6, rel=0.15)
    assert "all-to-all" not in shared["collectives"]
    assert "all-gather" in shared["collectives"]  # of weights, over fsdp


def test_the_committed_count_is_of_layouts_that_share_out_the_state():
    record = json.loads((ROOT / "docs/benchmarks/scaling-simulated.json").read_text())
    rows = {row["layout"]: row for row in record["rows"]}
    assert set(rows) == {layout.name for layout in scaling.LAYOUTS}
    for name, row in rows.items():
        _, fsdp, model = map(int, name.split("x"))
        assert row["state_bytes"] <= 1.05 / (fsdp * model) * rows["1x1x1"]["state_bytes"]
    data = rows["8x1x1"]
    assert data["sent"]["data"] == pytest.approx(data["on_paper"]["data"], rel=0.1)


MEASURE = """
from benchmarks import scaling
scaling.DISPATCHES = 1
scaling.main()
"""


@pytest.mark.slow
def test_several_devices_are_measured(tmp_path):
    """Two simulated ones: that it runs, not how fast it is."""
    file = tmp_path / "weak.json"
    argv = ["--config", "configs/debug.py", "--json", file, "--train.batch-size", 4]
    argv += ["--model.n-layer", 1, "--model.n-embd", 16, "--model.block-size", 16]
    ran = forked.run("-c", MEASURE, "weak", "--axis", "fsdp", *argv, n_devices=2)
    assert ran.returncode == 0, ran.stderr
    record = json.loads(file.read_text())
    assert [row["mesh"] for row in record["rows"]] == ["1x1x1", "1x2x1"]
    assert [row["batch_size"] for row in record["rows"]] == [4, 8]
    assert all(seconds > 0 for row in record["rows"] for seconds in row["seconds_per_step"])
    assert "| 2 | 1x2x1 | 8 |" in ran.stdout


@pytest.mark.parametrize("part", ["weak", "strong"])
def test_one_device_cannot_show_scaling(part, refused):
    line = refused(scaling.main, part, "--config", ROOT / "configs/debug.py")
    assert "JAX sees one" in line
    assert "JAX_NUM_CPU_DEVICES=8" in line


# --- the files for clusters


def test_the_batch_script_is_a_script():
    script = ROOT / "deploy/slurm.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = script.read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH " in line]
    options = [option for option in options if option.startswith("--")]
    given = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    # One process for each GPU, all of which it sees: JAX picks the one of SLURM_LOCALID.
    assert given["ntasks-per-node"] == given["gpus-per-node"]
    assert not {"gpus-per-task", "gpu-bind"} & set(given)
    # To the processes, not to the script (B:).
    assert given["signal"] == "TERM@120"
    assert "requeue" in given
    assert '"$code" -eq 143' in text


def test_a_job_that_was_stopped_goes_back_to_the_queue(tmp_path):
    """With srun and scontrol that only say what they were asked."""
    venv = tmp_path / ".venv/bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text(f'PATH="{venv}:$PATH"\n')
    for name, body in (("srun", 'echo "srun $@"; exit $CODE'), ("scontrol", 'echo "scontrol $@"')):
        (venv / name).write_text(f"#!/bin/bash\n{body}\n")
        (venv / name).chmod(0o755)
    for code in (0, 1, 2, 143):
        environment = {
            "PATH": "/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "CODE": str(code),
        }
        script = [ROOT / "deploy/slurm.sbatch", "--config", "a b.py"]
        ran = subprocess.run(["bash", *script], env=environment, capture_output=True, text=True)
        assert ran.returncode == code
        srun = "srun --kill-on-bad-exit=1 gptjax train --config a b.py"
        wanted = [srun, "scontrol requeue 7"] if code == 143 else [srun]
        assert ran.stdout.splitlines() == wanted


def test_slurm_tells_jax_all_it_wants(monkeypatch):
    """What srun sets for task 9 of two nodes of eight."""
    told = {"JOB_ID": "5000", "STEP_NODELIST": "gpu[07-08]", "NTASKS": "16", "PROCID": "9"}
    for name, value in (told | {"LOCALID": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert SlurmCluster.is_env_present()
    assert SlurmCluster.get_coordinator_address(None, None).startswith("gpu07:")
    assert SlurmCluster.get_process_count() == 16
    assert SlurmCluster.get_process_id() == 9
    assert SlurmCluster.get_local_process_id() == 1


@pytest.fixture
def manifest() -> dict[str, dict]:
    documents = yaml.safe_load_all((ROOT / "deploy/k8s-jobset.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_kubernetes_tells_jax_all_it_wants(manifest, monkeypatch):
    """JAX's own detection, on the Job and the Pod that JobSet would make of the manifest."""
    name, spec = manifest["JobSet"]["metadata"]["name"], manifest["JobSet"]["spec"]
    (workers,) = spec["replicatedJobs"]
    job_name = f"{name}-{workers['name']}-0"

    class Named:
        def __init__(self, **fields):
            vars(self).update(fields)

    job = workers["template"]["spec"]
    labels = {"jobset.sigs.k8s.io/jobset-name": name}
    as_job = Named(
        metadata=Named(name=job_name, labels=labels), spec=Named(parallelism=job["parallelism"])
    )
    for method, result in (("_job", as_job), ("_controller", Named(kind="Job")), ("_pod", None)):
        monkeypatch.setattr(K8sCluster, method, lambda result=result: result)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    address = K8sCluster.get_coordinator_address(None, None)
    assert address == f"{name}-workers-0-0.{name}:55527"  # JobSet's headless service is its name
    assert K8sCluster.get_process_count() == job["completions"] == 8
    assert K8sCluster.get_process_id() == 3
    assert workers["replicas"] == 1
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0


def test_the_pods_may_ask_what_jax_asks(manifest):
    pod = manifest["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (subject,) = manifest["RoleBinding"]["subjects"]
    assert pod["serviceAccountName"] == subject["name"]
    assert subject["name"] == manifest["ServiceAccount"]["metadata"]["name"]
    assert manifest["RoleBinding"]["roleRef"]["name"] == manifest["Role"]["metadata"]["name"]
    allowed = {
        (resource, verb)
        for rule in manifest["Role"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {("pods", "list"), ("jobs", "get")} <= allowed
    spaces = {document["metadata"]["namespace"] for document in manifest.values()}
    assert spaces == {subject["namespace"]}


def test_a_pod_has_a_gpu_and_time_to_save(manifest):
    jobset = manifest["JobSet"]
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert set(jobset["spec"]) <= {"replicatedJobs", "failurePolicy", "network", "successPolicy"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["command"] == ["gptjax", "train"]  # no shell that would keep SIGTERM
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    paths = [a.partition("=")[2] for a in container["args"] if a.startswith("--run-dir")]
    assert paths[0].startswith(mounts["shared"])
