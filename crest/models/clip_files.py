"""CLIP weights as others publish and read them: checkpoints of OpenCLIP in, folders that OpenCLIP loads out.

Pickled checkpoints are read as tensors only; what would run code is refused.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import urllib.error
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from crest import hub
from crest.errors import FetchError, WeightsError
from crest.models.clip_architecture import (
    OPEN_CLIP_CONFIG,
    ClipSpec,
    model_config,
    preprocessing,
    read_architecture,
)
from crest.models.clip_tokenizers import MERGES, count_merges
from crest.records import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from crest.models.clip import ClipModel

SAFE: Final = "open_clip_model.safetensors"
PICKLED: Final = "open_clip_pytorch_model.bin"
HUB_PREFIX: Final = "hf-hub:"
TEXT_CONFIG: Final = "config.json"
_WRAPPERS: Final = ("module.", "_orig_mod.", "clip.")
"""What parallel training, compilation and Crest put before every name."""
_STALE: Final = frozenset(
    ("text.transformer.embeddings.position_ids", "input_resolution", "context_length", "vocab_size")
)
"""What older files hold beside weights."""
_PATIENCE_S: Final = 10.0


def published(architecture: str, pretrained: str | None) -> tuple[ClipSpec, Path, Path]:
    """What to build, and the file that fills it, of weights that were published in OpenCLIP's ways.

    Args:
        architecture: an OpenCLIP name; a JSON file in the form of its model_configs; a folder with an
            open_clip_config.json; or "hf-hub:owner/name".
        pretrained: a tag that OpenCLIP knows for the name, or a local file; None: the folder's own weights.
    Returns:
        spec, weights, and the folder that may hold the tokenizer's files.
    Raises:
        WeightsError, FetchError: no such architecture, or weights that can't be had.
    """
    if architecture.startswith(HUB_PREFIX):
        folder: Path | None = hub.fetch_files(
            architecture.removeprefix(HUB_PREFIX),
            [[OPEN_CLIP_CONFIG, SAFE], [OPEN_CLIP_CONFIG, PICKLED]],
            also_small=True,
        )
    else:
        folder = Path(architecture) if Path(architecture).is_dir() else None
    if folder is not None:
        path = Path(pretrained) if pretrained else folder_weights(folder)
        return _spec_of(folder), _existing(path, architecture), folder
    if pretrained is None:
        raise WeightsError(f"model.pretrained is missing; {architecture} needs a tag or a local file.")
    if architecture.endswith(".json"):
        spec = ClipSpec(**read_architecture(Path(architecture)))
        return spec, _existing(Path(pretrained), architecture), Path(pretrained).parent
    spec = ClipSpec(architecture=architecture)
    model_config(spec)  # says what is near where there is no such name
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not tag:
        path = _existing(Path(pretrained), architecture)
        return _as_its_tags_agree(spec), path, path.parent
    spec = spec.model_copy(update=preprocessing(tag))
    if tag.get("quick_gelu") and not model_config(spec).get("quick_gelu"):
        spec = _with_quick_gelu(spec)  # OpenCLIP only warns, and computes something else
    path = _fetched(architecture, pretrained, tag)
    return spec, path, path.parent


def _spec_of(folder: Path) -> ClipSpec:
    """What a folder in OpenCLIP's form describes, the files beside it heeded."""
    spec = ClipSpec(**read_architecture(folder / OPEN_CLIP_CONFIG))
    found: dict[str, Any] = {}
    if (folder / MERGES).is_file():
        found["bpe_merges"] = count_merges(folder / MERGES)
    if model_config(spec)["text_cfg"].get("hf_model_name") and (folder / TEXT_CONFIG).is_file():
        found["text_config"] = read_json(folder / TEXT_CONFIG)
    return spec.model_copy(update=found)


def folder_weights(folder: Path) -> Path:
    """The weights of a folder in OpenCLIP's form, the safe ones where there are both."""
    return next((folder / name for name in (SAFE, PICKLED) if (folder / name).exists()), folder / SAFE)


def _existing(path: Path, architecture: str) -> Path:
    if path.is_file():
        return path
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = f"OpenCLIP knows {', '.join(tags[:6])}" if tags else "OpenCLIP knows no tag for it"
    raise WeightsError(
        f"{architecture}/{path}: the weights can't be had (there is no such file or tag; {known}); name a "
        "local file."
    )


def _as_its_tags_agree(spec: ClipSpec) -> ClipSpec:
    """The preprocessing of all published weights of an architecture, where they agree, for a local file."""
    name = str(spec.architecture)
    tags = [
        preprocessing(open_clip.get_pretrained_cfg(name, tag))
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    return spec.model_copy(update=tags[0]) if tags and all(tag == tags[0] for tag in tags) else spec


def _with_quick_gelu(spec: ClipSpec) -> ClipSpec:
    name = f"{spec.architecture}-quickgelu"
    if open_clip.get_model_config(name) is not None:
        return spec.model_copy(update={"architecture": name})
    custom = {**model_config(spec), "quick_gelu": True}
    return spec.model_copy(update={"architecture": None, "custom": custom})


def _fetched(architecture: str, pretrained: str, tag: Mapping[str, Any]) -> Path:
    """The file behind a tag: from the cache, else from the hub, which is asked once."""
    if place := tag.get("hf_hub"):
        owner, _, rest = str(place).partition("/")
        name, _, file = rest.partition("/")
        names = [f"{Path(file).with_suffix('.safetensors')}", file] if file else [SAFE, PICKLED]
        folder = hub.fetch_files(f"{owner}/{name}", [[name] for name in names])
        return next(folder / name for name in names if (folder / name).exists())
    with _short_patience():
        try:
            return Path(open_clip.download_pretrained(tag))
        except (OSError, RuntimeError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise FetchError(
                f"{architecture}/{pretrained}: the weights can't be had from {tag.get('url')} ({reason}); "
                "connect, or name a local file."
            ) from None


@contextlib.contextmanager
def _short_patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def hub_name_of(start: str | None, architecture: str | None, pretrained: str | None) -> str | None:
    """The hub repository that a config's starting weights come from, where they come from one."""
    for place in (start, architecture):
        if place and place.startswith(HUB_PREFIX):
            return place.removeprefix(HUB_PREFIX)
    tag = open_clip.get_pretrained_cfg(architecture, pretrained) if architecture and pretrained else {}
    owner, _, rest = str((tag or {}).get("hf_hub", "")).partition("/")
    return f"{owner}/{rest.partition('/')[0]}" if rest else None


def fill(clip: Any, path: Path) -> None:
    """Fill OpenCLIP's model with a published file's weights; every name and shape must agree.

    Grids of positions are interpolated to the model's picture size, as OpenCLIP does.

    Raises:
        WeightsError: a file that is damaged, that would run code, or of another architecture.
    """
    if path.suffix in (".npz", ".npy"):  # big_vision's, which OpenCLIP translates
        open_clip.load_checkpoint(clip, str(path))
        return
    state = read_state(path)
    try:
        state = _fitted(clip, state)
    except (AssertionError, RuntimeError, KeyError, AttributeError) as error:
        raise WeightsError(_unfit(path, str(error).splitlines()[0] if str(error) else "no fit")) from None
    wanted = clip.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise WeightsError(_unfit(path, f"the file lacks {name}"))
        if state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            raise WeightsError(_unfit(path, f"{name} is {found}, expected {expected}"))
    if extra := sorted(set(state) - set(wanted)):
        raise WeightsError(_unfit(path, f"the file holds {extra[0]}, which the architecture has not"))
    clip.load_state_dict(state)


def _unfit(path: Path, what: str) -> str:
    return (
        f"{path}: the weights can't be had ({what}): they are of another architecture; name its own, or name "
        "a local file that fits."
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, under the names that OpenCLIP's models give them.

    Args:
        path: safetensors; or a pickled state dict, bare or in a training checkpoint
            {state_dict, optimizer, ...}.
    Raises:
        WeightsError: damaged, or more than tensors.
    """
    _refuse_program(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(_unread(path, error)) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    tensors = isinstance(found, dict) and {n: v for n, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors, expected a state dict; name another file.")
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return dict(tensors)


def _refuse_program(path: Path) -> None:
    """Raise for TorchScript, which torch.load would hand on to what runs it."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError(
                f"{path}: is a TorchScript program, expected tensors: loading would run its code; take the "
                'same weights by their tag (OpenAI\'s are "openai") or as safetensors.'
            )


def _unread(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        return (
            f"{path}: holds more than tensors, which could run code when it is read; write its state dict as "
            "safetensors where it is trusted."
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: is not a whole checkpoint ({reason}); copy or download it again."


def _fitted(clip: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Older and foreign names and shapes as this model has them, by OpenCLIP's own translations."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    state = convert_state_dict(clip, state)
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(clip, name, None)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
    if clip.logit_bias is not None and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(clip.logit_bias)  # a softmax CLIP, to be tuned as a SigLIP
    own = clip.state_dict().keys()
    state = {name: value for name, value in state.items() if name in own or name not in _STALE}
    resize_pos_embed(state, clip)
    if hasattr(clip, "positional_embedding") or hasattr(getattr(clip, "text", None), "positional_embedding"):
        resize_text_pos_embed(state, clip)
    return state


def write_open_clip(
    folder: Path, model: ClipModel, *, home: str | None = None, name: str | None = None
) -> None:
    """Write a CLIP as a folder that OpenCLIP loads without Crest, and Crest too.

    In it: open_clip_config.json and open_clip_model.safetensors (a hub repository of these two is "hf-hub:…"
    to OpenCLIP); <name>.json, the architecture for open_clip.add_model_config; the tokenizer's files.

    Args:
        folder: is made; files of these names are replaced.
        home: where OpenCLIP will find the tokenizer and the text tower's configuration, the name of a hub
            repository; None: this folder.
        name: of the architecture; None: the folder's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_here = home is None
    home = home or str(folder.resolve())
    config = model_config(model.spec)
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        write_json(folder / TEXT_CONFIG, model.spec.text_config)
        text |= {"hf_model_name": home, "hf_model_pretrained": False}
    if text.get("hf_tokenizer_name"):
        text["hf_tokenizer_name"] = home
    elif model.spec.bpe_merges is not None and is_here:
        text["tokenizer_kwargs"] = {"bpe_path": str(folder.resolve() / MERGES)}
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    preprocess = preprocess_config(model.spec)
    write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    write_json(folder / f"{name or folder.name}.json", config)
    for file, content in model.tokenizer.files().items():
        if file != TEXT_CONFIG or not text.get("hf_model_name"):
            write_bytes(folder / file, content)
    tensors = {key: tensor.cpu().contiguous().clone() for key, tensor in model.clip.state_dict().items()}
    write_bytes(folder / SAFE, save(tensors))


def preprocess_config(spec: ClipSpec) -> dict[str, Any]:
    """OpenCLIP's preprocess_cfg that comes nearest to what Crest does: the whole picture, padded white."""
    return {
        "mean": list(spec.image_mean),
        "std": list(spec.image_std),
        "interpolation": spec.interpolation,
        "resize_mode": "longest",
        "fill_color": 255,
    }


def is_open_clip_folder(place: str | Path) -> bool:
    """Whether a place is a folder in OpenCLIP's form."""
    return (Path(place) / OPEN_CLIP_CONFIG).is_file()
