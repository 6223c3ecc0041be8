"""States appear whole or not at all, weights fit or are refused by name, and nothing is pickled."""

import ast
import json
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crest.checkpoint import (
    State,
    card_spec,
    export_weights,
    load_state,
    load_weights,
    locate_weights,
    newest_state,
    read_card,
    save_state,
    short_hash,
)
from crest.config import OptimConfig
from crest.ema import Ema
from crest.errors import RunError, WeightsError
from crest.models.prior import PriorSpec
from crest.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
OPTIM = OptimConfig(lr=0.01, batch_size=1)


def network(width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def trained(steps: int, width: int = 4) -> State:
    """A state after some steps, with moments in its optimizer and a buffer that moved."""
    model = network(width)
    state = State(0, model, Ema(model, 0.9), build_optimizer(model, OPTIM))
    for step in range(steps):
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(model, step)
        state.step += 1
    return state


def everything(state: State) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in state.ema.model.state_dict().items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    return tensors


def assert_equal(left: State, right: State) -> None:
    ours, theirs = everything(left), everything(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (left.step, left.best, left.best_step) == (right.step, right.best, right.best_step)


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """What a full disk does to a writer: part of the file is there, then the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_saved_state_comes_back_exactly(tmp_path: Path) -> None:
    state = trained(3)
    state.best, state.best_step = 0.1, 2  # 0.1 has no exact binary form; JSON must keep it all the same
    save_state(tmp_path, state)
    back = trained(0)
    assert load_state(tmp_path, back)
    assert_equal(back, state)
    assert back.optimizer.param_groups[0]["weight_decay"] == OPTIM.weight_decay


def test_a_step_after_coming_back_is_the_step_that_would_have_followed(tmp_path: Path) -> None:
    """Weights in channels-last order too, whose moments must lie in memory as they do."""

    def step(state: State, seed: int) -> None:
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        state.model(images).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

    def fresh() -> State:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        return State(0, model, Ema(model, 0.9), build_optimizer(model, OPTIM))

    straight, back = fresh(), fresh()
    for seed in range(3):
        step(straight, seed)
    save_state(tmp_path, straight)
    load_state(tmp_path, back)
    for state in (straight, back):
        step(state, 3)
    assert torch.equal(back.model.weight, straight.model.weight)


def test_without_a_state_a_run_starts_from_its_beginning(tmp_path: Path) -> None:
    assert not load_state(tmp_path, trained(0))


def test_a_newer_state_replaces_the_older_one(tmp_path: Path) -> None:
    save_state(tmp_path, trained(1))
    save_state(tmp_path, trained(2))
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]


def test_a_write_that_fails_half_way_leaves_the_old_state(tmp_path: Path) -> None:
    old = trained(1, width=400)
    save_state(tmp_path, old)
    with files_no_larger_than(2000), pytest.raises(OSError, match="File too large"):
        save_state(tmp_path, trained(2, width=400))
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000001"]
    back = trained(0, width=400)
    load_state(tmp_path, back)
    assert_equal(back, old)


def test_what_a_killed_save_left_behind_is_not_taken_for_a_state(tmp_path: Path) -> None:
    save_state(tmp_path, trained(1))
    left = tmp_path / "state" / "step-00000002.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    newest = newest_state(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000001"
    save_state(tmp_path, trained(2))
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, trained(1))
    with pytest.raises(RunError, match=r"step-00000001: does not fit this run's model"):
        load_state(tmp_path, trained(0, width=5))


def test_a_state_cut_in_half_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, trained(1))
    path = tmp_path / "state" / "step-00000001" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="does not fit"):
        load_state(tmp_path, trained(0))


def test_exported_weights_come_back_with_their_card(tmp_path: Path) -> None:
    model = trained(2).model
    path = export_weights(tmp_path, model, {"kind": "prior", "spec": {"a": 1}})
    card = read_card(path, "prior")
    assert card["spec"] == {"a": 1}
    assert short_hash(path) == card["sha256"][:16]
    back = network(seed=1)
    load_weights(back, path)
    assert all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["weights.json", "weights.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float(tmp_path: Path) -> None:
    model = network(400)
    export_weights(tmp_path, model, {"kind": "prior", "spec": {}})
    export_weights(tmp_path, model, {"kind": "prior", "spec": {}}, name="half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("weights", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    back = network(400, seed=1)
    load_weights(back, tmp_path / "half.safetensors")
    assert back[0].weight.dtype == torch.float32
    assert torch.allclose(back[0].weight, model[0].weight, atol=1e-3)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (nn.Sequential(nn.Linear(3, 5)), r"0\.weight is \(4, 3\), expected \(5, 3\)"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), r"lacks 1\.weight"),
        (nn.Sequential(nn.Linear(3, 4, bias=False)), r"holds 0\.bias"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_the_first_difference(
    tmp_path: Path, other: nn.Module, difference: str
) -> None:
    path = export_weights(tmp_path, nn.Sequential(nn.Linear(3, 4)), {"kind": "prior", "spec": {}})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"weights\.safetensors: {difference}.*(another|of another one)"):
        load_weights(other, path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("keep", [0.5, 0.01])
def test_a_weights_file_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    path = export_weights(tmp_path, network(), {"kind": "prior", "spec": {}})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(WeightsError, match=r"is not a whole safetensors file .* copy or export it again"):
        load_weights(network(), path)


def test_weights_are_found_by_folder_file_and_stock_name(tmp_path: Path) -> None:
    path = export_weights(tmp_path, network(), {"kind": "prior", "spec": {}})
    assert locate_weights(tmp_path, "prior") == locate_weights(str(path), "prior") == path


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("runs/none", "there are no prior weights; expected a run folder"),
        ("stock/nothing", "there are no prior weights"),
        (".", r"holds no weights\.safetensors; finish the run"),
    ],
)
def test_weights_that_are_not_there_are_refused(tmp_path: Path, place: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        locate_weights(place if place.startswith("stock") else tmp_path / place, "prior")


def test_weights_of_another_kind_or_without_a_card_are_refused(tmp_path: Path) -> None:
    path = export_weights(tmp_path, network(), {"kind": "decoder", "spec": {}})
    with pytest.raises(WeightsError, match="holds a decoder, expected a prior"):
        read_card(path, "prior")
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"has no weights\.json beside it"):
        read_card(path, "decoder")


@pytest.mark.parametrize(
    "card", [{}, {"spec": {"dim": 3}}, {"spec": {"image_embed_dim": "x", "text_width": 1}}]
)
def test_a_card_with_a_foreign_spec_is_refused(tmp_path: Path, card: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match=r"weights\.json: its spec is no PriorSpec \("):
        card_spec(tmp_path / "weights.safetensors", card, PriorSpec)


def test_the_weights_file_names_its_kind_inside(tmp_path: Path) -> None:
    path = export_weights(tmp_path, network(), {"kind": "prior", "spec": {}})
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert header["__metadata__"] == {"kind": "prior"}
    assert len(load_file(path)) == len(network().state_dict())


MAY_NAME_PICKLE = (
    "crest/models/hub_captioner.py",  # the error that transformers raises when weights are not plain tensors
    "tests/crest/models/test_hub_captioner.py",  # weights of the older form, and a hostile one, to be refused
    "tests/crest/torch_saved.py",  # files as torch.save writes them
    "tests/crest/test_pickles.py",  # the same
    "tests/crest/test_hostile_pickles.py",  # proof that an attack works elsewhere
    "tests/crest/models/test_fingerprint.py",  # files as torch.save writes them
    "tests/prior_train/test_upstream_traps.py",  # what the library's own trainer stops with
    "crest/models/clip_files.py",  # published .pt files, by weights_only: others are refused
    "tests/crest/models/test_clip_files.py",  # such files, and hostile ones, to be refused
    "tests/crest/models/test_clip_interchange.py",  # tensors back from a process of its own
    "tests/clip_train/test_publish.py",  # tensors back from a process of its own
    "benchmarks/clip_contestants.py",  # what the script leaves, by weights_only
    "tests/benchmarks/test_clip_race.py",  # a checkpoint as open_clip's script leaves it
    "scraper/executor.py",  # jobs and results on pipes between a process and its own workers
)


def test_no_file_of_ours_pickles() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    files = listed or [str(path.relative_to(ROOT)) for path in (ROOT / "crest").rglob("*.py")]
    assert "crest/checkpoint.py" in files
    for file in set(files) - set(MAY_NAME_PICKLE):
        assert list(pickling((ROOT / file).read_text(encoding="utf-8"))) == [], file


def pickling(source: str) -> Iterator[str]:
    """Every way by which a source could unpickle."""
    banned = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in banned)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if (node.module or "").split(".")[0] in banned or (
                node.module == "torch" and {"load", "save"} & {*names}
            ):
                yield str(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from torch import load", "import torch\ntorch.load('x')", "def f():\n import dill"],
)
def test_pickling_would_be_found(source: str) -> None:
    assert list(pickling(source))
