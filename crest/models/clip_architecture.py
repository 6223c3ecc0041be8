"""What a CLIP is built from: OpenCLIP's architectures by name, by JSON file or spelled out; no weights.

A settled spec needs no other file and no network: the JSON that it names, and the configuration of a text
tower of the transformers library, are in it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import open_clip

from crest import hub
from crest.config import Config
from crest.errors import CrestError, WeightsError
from crest.records import read_json

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
"""Of a hub repository: OpenCLIP's own form of an architecture and its preprocessing."""
PARTS: Final = frozenset(("embed_dim", "vision_cfg", "text_cfg"))


class ClipSpec(Config):
    """Everything needed to build a CLIP and to feed it."""

    architecture: str | None = None
    """Name of an OpenCLIP architecture, for instance "ViT-B-32", or a JSON file in the form of its
    model_configs; or none, with `custom`."""
    custom: dict[str, Any] | None = None
    """OpenCLIP's model config (embed_dim, vision_cfg, text_cfg) for an architecture of one's own."""
    bpe_merges: int | None = None
    """Keep only the first so many merges of CLIP's byte-pair table (a small vocabulary for a small model)."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per-channel mean that pictures are centred by."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel deviation that pictures are divided by."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How a square picture of another size is resized."""
    resize_mode: Literal["longest", "shortest", "squash"] = "longest"
    """How the makers of the weights brought pictures to a square; Crest pads them, which is "longest"."""
    text_config: dict[str, Any] | None = None
    """Configuration of a text tower of the transformers library; filled in when it is first built."""


def settled(spec: ClipSpec) -> ClipSpec:
    """The spec with all that it refers to written out in it.

    Raises:
        WeightsError: no such architecture, or a file that holds none.
        FetchError: a text tower whose configuration is not on this machine and can't be had.
    """
    if spec.custom is None and str(spec.architecture).endswith(".json"):
        path = Path(str(spec.architecture))
        spec = spec.model_copy(update={"architecture": None, **read_architecture(path)})
    tower = model_config(spec)["text_cfg"].get("hf_model_name")
    if tower and spec.text_config is None:
        folder = Path(tower) if Path(tower).is_dir() else hub.fetch_files(tower, [["config.json"]])
        spec = spec.model_copy(update={"text_config": read_json(folder / "config.json")})
    return spec


def read_architecture(path: Path) -> dict[str, Any]:
    """What a JSON file says of a CLIP, as fields of a ClipSpec: one of OpenCLIP's two forms.

    Args:
        path: of model_configs (embed_dim, vision_cfg, text_cfg), or an open_clip_config.json, which adds the
            preprocessing. Folders that it names may lie beside it.
    Raises:
        WeightsError: no file, or one of another form.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: there is no such file, expected an OpenCLIP model config; check the path."
        )
    found = read_json(path)
    config = found.get("model_cfg", found) if isinstance(found, dict) else {}
    if not isinstance(config, dict) or not config.keys() >= PARTS:
        raise WeightsError(
            f"{path}: is no OpenCLIP model config, expected {', '.join(sorted(PARTS))}; see open_clip's "
            "model_configs."
        )
    config = copy.deepcopy(config)
    for name in ("hf_model_name", "hf_tokenizer_name"):
        beside = path.parent / str(config["text_cfg"].get(name) or "?")
        if beside.is_dir():
            config["text_cfg"][name] = str(beside)
    return {"custom": config, **preprocessing(found.get("preprocess_cfg") or {})}


def preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """OpenCLIP's preprocessing (of a tag, or of a preprocess_cfg) as fields of a ClipSpec."""
    names = {"mean": "image_mean", "std": "image_std"}
    known = ("mean", "std", "interpolation", "resize_mode")
    values = {names.get(name, name): config[name] for name in known if config.get(name) is not None}
    if values.get("interpolation") not in (None, "bicubic", "bilinear"):
        del values["interpolation"]  # "random" is for training
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def model_config(spec: ClipSpec) -> dict[str, Any]:
    """OpenCLIP's model config of a spec; the caller's own copy.

    Raises:
        WeightsError: OpenCLIP has no such architecture, or `custom` is none.
    """
    if spec.custom is not None:
        if not spec.custom.keys() >= PARTS:
            lacking = ", ".join(sorted(PARTS - spec.custom.keys()))
            raise WeightsError(
                f"model.custom: is no OpenCLIP architecture (it lacks {lacking}); see open_clip's "
                "model_configs."
            )
        return copy.deepcopy(spec.custom)
    config: dict[str, Any] | None = open_clip.get_model_config(spec.architecture or "")
    if config is None:
        near = [
            name for name in open_clip.list_models() if str(spec.architecture).lower()[:5] in name.lower()
        ][:3]
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise WeightsError(f'model.architecture: OpenCLIP has no "{spec.architecture}"{hint}.')
    return config


def build(spec: ClipSpec) -> Any:
    """OpenCLIP's model of a settled spec, with random weights.

    Raises:
        WeightsError: the spec describes nothing that OpenCLIP can build.
    """
    config = model_config(spec)
    is_published_text = bool(config["text_cfg"].get("hf_model_name"))
    is_custom_text = bool(config.pop("custom_text", False)) or is_published_text
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False  # the weights come whole, or are random
    if not is_custom_text:
        kind, _ = open_clip.CLIP, config.pop("multimodal_cfg", None)
    else:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        with tempfile.TemporaryDirectory(prefix="crest-clip-") as folder:
            if is_published_text:  # the library reads its configuration from a folder or the hub
                (Path(folder) / "config.json").write_text(json.dumps(spec.text_config), encoding="utf-8")
                config["text_cfg"] |= {"hf_model_name": folder, "hf_model_pretrained": False}
            return kind(**config)
    except CrestError:
        raise
    except Exception as error:  # whatever three libraries raise at a config that is none
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = "model.custom" if spec.custom is not None else f"model.architecture: {spec.architecture}"
        raise WeightsError(
            f"{where}: is no OpenCLIP architecture ({reason}); see open_clip's model_configs."
        ) from None
