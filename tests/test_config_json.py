"""A configuration survives config.json, and those of runs from before 2026-11-26 still load."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax import config_json
from gptjax.config import Config, MeshConfig, OptimConfig, TrainConfig
from gptjax.config_encoders import PairsDataConfig, SpeechConfig, SpeechDataConfig
from gptjax.errors import UserError
from gptjax.runs import run_directory

# Written by the code of then: a text, pairs, speech.
OLD = (Path(__file__).parent / "old_configs.jsonl").read_text().splitlines()
NEWER = ("attention", "on_broken", "field", "members", "teacher", "predict_ahead", "drop_attention")
NEWER += ("voice_change", "channel_change", "extra_clips", "predict_frames", "tempo_change")
NEWER += ("training_temperature",)
"""Fields that these runs did not have."""


def values(hint: Any) -> st.SearchStrategy:
    """Any value of a field with this type."""
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    if hint == Path | None:
        return st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(Path)
    simple = {int: st.integers(), bool: st.booleans(), str: st.text()}
    # config_checks refuses infinite numbers, and JSON has none.
    return simple[hint] if hint in simple else st.floats(allow_nan=False, allow_infinity=False)


def instances(cls: type) -> st.SearchStrategy:
    return st.builds(cls, **{name: values(t) for name, t in typing.get_type_hints(cls).items()})


CONFIGS = st.one_of(
    *(
        st.builds(
            Config,
            model=instances(model),
            data=instances(data),
            optim=instances(OptimConfig),
            mesh=instances(MeshConfig),
            train=instances(TrainConfig),
            seed=st.integers(),
        )
        for model, data in config_json.DATA_OF_MODEL.items()
    )
)


@settings(deadline=None, max_examples=50)
@given(CONFIGS)
def test_json_keeps_every_field(config: Config) -> None:
    again = config_json.from_json(config_json.to_json(config))
    assert again == config
    flat, flat_again = config_json.flatten(config), config_json.flatten(again)
    assert {name: type(v) for name, v in flat.items()} == {
        name: type(v) for name, v in flat_again.items()
    }


@pytest.mark.parametrize("text", OLD, ids=["text", "pairs", "speech"])
def test_a_run_from_before_still_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    config = run_directory.read_config(tmp_path)
    assert config_json.from_json(config_json.to_json(config)) == config
    assert type(config.data) is config_json.DATA_OF_MODEL[type(config.model)]
    # Every field that is left has the value that the run was started with.
    old = json.loads(text)
    for section in ("model", "data", "optim", "mesh", "train"):
        fields = dataclasses.asdict(getattr(config, section))
        for newer in NEWER:
            fields.pop(newer, None)
        for name, value in fields.items():
            assert (str(value) if isinstance(value, Path) else value) == old[section][name], name


def test_what_the_old_runs_were() -> None:
    text, pairs, speech = map(config_json.from_json, OLD)
    assert text.data.path == Path("text.txt")
    assert text.train.max_steps == 20
    assert isinstance(pairs.data, PairsDataConfig)
    assert isinstance(speech.model, SpeechConfig)
    assert isinstance(speech.data, SpeechDataConfig)
    assert speech.data.string_clips > 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "Config", "no": 1}', "null"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^config\.json.*; this version of gptjax did not write"):
        config_json.from_json(text)
