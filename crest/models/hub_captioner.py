"""Published captioners behind one face: any model that transformers lists as image and text to text.

Three routes lead to an answer. "plain": the picture alone (ViT-GPT2, GIT, BLIP); "prompt": the picture and
words to go on from or to answer (BLIP, Florence-2, Kosmos-2, PaliGemma); "chat": a message by the model's own
chat template (SmolVLM, Qwen-VL, LLaVA). The first to try is nlpconnect/vit-gpt2-image-captioning. Reads local
folders; names go through crest.hub. Runs no code that comes with weights.

The library's image-to-text pipeline is not used: it is gone, its successor refuses ViT-GPT2 folders, echoes
prompts and has no chat template for BLIP.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from crest import hub
from crest.errors import ConfigError, WeightsError
from crest.images import square
from crest.records import file_hash, hash_of

Route = Literal["auto", "plain", "prompt", "chat"]

QUESTION: Final = "Describe this logo in one sentence: shapes, colours, and any words in quotes."
PLAIN_KINDS: Final = frozenset(("vision-encoder-decoder", "git", "blip", "blip-2", "pix2struct"))
"""Kinds of models that describe a picture without being asked."""
TASKS: Final = {"florence2": "<DETAILED_CAPTION>", "kosmos-2": "<grounding>An image of"}
"""What kinds that know set phrases only are asked in place of QUESTION."""
MAX_SIDE_PX: Final = 1024
"""Larger pictures are scaled down first; each model's own processor does the rest."""
CUT: Final = "…"


@dataclass(frozen=True)
class Asking:
    """How a captioner is asked."""

    route: Route = "auto"
    """"auto" reads it off the model and its processor"""
    prompt: str = QUESTION
    """for the routes that take words"""
    beams: int = 1
    """1: greedy decoding; more: beam search"""
    max_tokens: int = 60
    """longest answer; one that is cut there ends in '…'"""


def published(place: str | Path, revision: str | None = None) -> tuple[Path, str] | None:
    """The folder of a published captioner behind a place, and what pins its weights.

    Args:
        place: a local folder, a run folder that holds one in `published/`, or a hub name.
        revision: commit, branch or tag of a hub name.
    Returns:
        folder and hash (a commit for a hub name); None when the place is none of these.
    """
    folder = Path(place)
    for candidate in (folder / "published", folder):
        is_run = (candidate / "weights.json").exists() or (candidate / "state").exists()
        if (candidate / "config.json").exists() and not is_run:
            return candidate, folder_hash(candidate)
    if not hub.is_hub_name(str(place)) or str(place).startswith("stock/"):
        return None
    snapshot = hub.fetch(str(place), revision)
    return snapshot.folder, snapshot.commit


def folder_hash(folder: Path) -> str:
    """Names the weights and settings of a local folder, whatever the folder is called."""
    names = hub.wanted(sorted(path.name for path in folder.iterdir() if path.is_file()))
    return hash_of({name: file_hash(folder / name) for name in names})


class HubCaptioner:
    """A published captioner, frozen.

    Args:
        folder: with its configuration, its weights and what prepares its inputs.
        digest: names the weights.
        device: where it runs.
        asking: how it is asked.

    Attributes:
        hash: names the weights.
        route: the one in use, never "auto".
        prompt: what it is asked; empty on the plain route.

    Raises:
        WeightsError: a folder that transformers can't read.
        ConfigError: a route that the model does not have.
    """

    def __init__(
        self, folder: Path, digest: str, device: str | torch.device = "cpu", asking: Asking | None = None
    ) -> None:
        asking = asking or Asking()
        self.hash, self.device, self.asking = digest, torch.device(device), asking
        try:
            self._load(folder)
        except pickle.UnpicklingError:  # weights of the older form are read as tensors, never run
            raise WeightsError(
                f"{folder}: holds weights that are not plain tensors, expected nothing else in them; take a "
                "repository with model.safetensors."
            ) from None
        except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"{folder}: is no captioner that transformers can read ({reason}); download all its "
                "files, or name another one."
            ) from None
        self.route = self._route(asking.route, folder)
        task = TASKS.get(self.kind) if asking.prompt == QUESTION else None
        self.prompt = "" if self.route == "plain" else task or asking.prompt

    def _load(self, folder: Path) -> None:
        local = {"local_files_only": True, "trust_remote_code": False}
        dtype = "auto" if self.device.type == "cuda" else torch.float32
        network = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **local)
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        self.kind = str(network.config.model_type)
        if self.kind == "vision-encoder-decoder":  # has no processor class of its own
            self._look = AutoImageProcessor.from_pretrained(folder, **local)
            self._processor, self._words = None, AutoTokenizer.from_pretrained(folder, **local)
        else:
            self._processor = AutoProcessor.from_pretrained(folder, **local)
            self._look, self._words = self._processor.image_processor, self._processor.tokenizer
        self._words.padding_side = "left"  # answers begin where the longest question ends
        if self._words.pad_token is None:
            self._words.pad_token = self._words.eos_token
        self._settings = self._generation()
        self._takes = frozenset(inspect.signature(self.network.forward).parameters)

    def _generation(self) -> Any:
        """The model's own special tokens, with our length and search, and without its way of sampling."""
        settings = copy.deepcopy(self.network.generation_config)
        # a length or a sampler that was saved with the weights would contend with ours, or warn
        for name in ("max_length", "min_length", "temperature", "top_p", "top_k", "early_stopping"):
            setattr(settings, name, None)
        if settings.pad_token_id is None:
            settings.pad_token_id = self._words.pad_token_id
        settings.update(**self._search)
        return settings

    @property
    def _search(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.asking.max_tokens,
            "num_beams": self.asking.beams,
            "do_sample": False,
        }

    def _route(self, wanted: Route, folder: Path) -> str:
        has_template = bool(getattr(self._processor, "chat_template", None))
        if wanted == "auto":
            return "chat" if has_template else "plain" if self.kind in PLAIN_KINDS else "prompt"
        if wanted == "chat" and not has_template:
            raise ConfigError(
                f'{folder}: a {self.kind} without a chat template, but the route is "chat"; take "auto".'
            )
        if wanted != "plain" and self._processor is None:
            raise ConfigError(
                f'{folder}: a {self.kind} takes no words, but the route is "{wanted}"; take "auto".'
            )
        return wanted

    @torch.no_grad()
    def caption(self, pictures: Sequence[Image]) -> list[str]:
        """One description per picture of any size and mode, all at once; '…' ends one that was cut."""
        if not pictures:
            return []
        # squares: some processors crop what is wide, and would cut a wordmark's ends off
        squares = [square(picture, min(max(picture.size), MAX_SIDE_PX)) for picture in pictures]
        inputs = {name: self._placed(value) for name, value in self._inputs(squares).items()}
        # BLIP hands its own special tokens down to its decoder, beside which no settings may stand
        how = self._search if self.kind == "blip" else {"generation_config": self._settings}
        tokens = self.network.generate(**inputs, **how)
        return [self._text(row) for row in self._answers(tokens, inputs.get("input_ids"))]

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self.network.dtype if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype)

    def _inputs(self, pictures: list[Image]) -> dict[str, Tensor]:
        if self.route == "plain":
            return {"pixel_values": self._look(images=pictures, return_tensors="pt")["pixel_values"]}
        assert self._processor is not None
        if self.route == "chat":
            talks = [
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": one}, {"type": "text", "text": self.prompt}],
                    }
                ]
                for one in pictures
            ]
            return dict(
                self._processor.apply_chat_template(
                    talks,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    processor_kwargs={"padding": True},
                )
            )
        found = self._processor(
            images=pictures, text=[self.prompt] * len(pictures), padding=True, return_tensors="pt"
        )
        inputs = dict(found)
        goes_on = not self.network.config.is_encoder_decoder and self.kind != "blip"  # which cuts it itself
        if goes_on and int(inputs["input_ids"][0, -1]) in self._ends:
            # a tokenizer that ends its texts ends the question too: nothing would be left to say
            for name in {"input_ids", "attention_mask", "token_type_ids"} & set(inputs):
                inputs[name] = inputs[name][:, :-1]
        if "token_type_ids" not in self._takes:  # some tokenizers give what their model refuses
            inputs.pop("token_type_ids", None)
        return inputs

    @property
    def _ends(self) -> set[int]:
        ends = {self._words.eos_token_id, self._words.sep_token_id}
        known = self._settings.eos_token_id
        ends |= set(known) if isinstance(known, list) else {known}
        return {end for end in ends if end is not None}

    def _answers(self, tokens: Tensor, asked: Tensor | None) -> Tensor:
        """The tokens behind the question, where a model repeats it."""
        if asked is None or tokens.shape[1] < asked.shape[1]:
            return tokens
        return tokens[:, asked.shape[1] :] if bool((tokens[:, : asked.shape[1]] == asked).all()) else tokens

    def _text(self, row: Tensor) -> str:
        said = row.tolist()
        is_cut = not self._ends & set(said[1:])
        text = " ".join(str(self._words.decode(said, skip_special_tokens=True)).split())
        text = without_echo(text, self.prompt)
        return f"{text}{CUT}" if is_cut and text else text


def without_echo(text: str, prompt: str) -> str:
    """An answer without the question that it repeats, however that was spelled and spaced."""
    wanted = [letter for letter in prompt.casefold() if letter.isalnum()]
    place = 0
    for letter in wanted:
        while place < len(text) and not text[place].isalnum():
            place += 1
        if place == len(text) or text[place].casefold() != letter:
            return text
        place += 1
    end = "".join(letter for letter in prompt[-4:] if not letter.isalnum())
    return text[place:].lstrip(f" .,:;?!{end}") if wanted else text
