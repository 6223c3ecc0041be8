"""CLIP's tokenizers: the byte pairs that come with OpenCLIP, and those of the hub's transformers library.

Each knows which of its tokens are text and which are padding, so that nothing else hard-codes token ids.
Files are looked for beside the weights, then in the hub's cache; the network is asked last, and once.

OpenCLIP 2.32 calls a method of tokenizers that transformers 5 has not, so its own wrapper is not used.
"""

from __future__ import annotations

import functools
import gzip
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_clean_fn
from torch import Tensor

from crest import hub
from crest.errors import WeightsError

FOLDER: Final = "tokenizer"
"""Beside weights: what their tokenizer is read from."""
MERGES: Final = "merges.txt.gz"
"""A byte-pair table that was shortened."""
ALTERNATIVES: Final = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("sentencepiece.model",),
    ("tokenizer.model",),
)
"""Any one of these makes a tokenizer."""
_FURTHER: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


class Tokenizer(Protocol):
    """Texts to token ids."""

    context_length: int
    """L at most, tokens"""
    vocab_size: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, context_length)."""
        ...

    def inside(self, tokens: Tensor) -> Tensor:
        """(B, L) bool: what is text, its marks of start and end with it, and not padding."""
        ...

    def length(self, text: str) -> int:
        """Tokens of a text that is not cut, marks included."""
        ...

    def files(self) -> dict[str, bytes]:
        """Name -> content of what it was made from, where that does not come with OpenCLIP."""
        ...


class BytePairs(SimpleTokenizer):  # type: ignore[misc]
    """CLIP's byte pairs, its table whole or shortened."""

    def __init__(self, merges: int | None, context_length: int, **options: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="crest-bpe-") as folder:
            table = Path(default_bpe())
            if merges is not None:
                table = Path(folder) / MERGES
                table.write_bytes(_short_table(merges))
            super().__init__(bpe_path=str(table), context_length=context_length, **options)
        self._merges = merges

    def inside(self, tokens: Tensor) -> Tensor:
        """Up to the first end mark: 0, which fills the rest, is a byte of the text too."""
        ends = (tokens == self.eot_token_id).int().argmax(dim=1)
        inside: Tensor = torch.arange(tokens.shape[1], device=tokens.device)[None] <= ends[:, None]
        return inside

    def length(self, text: str) -> int:
        """Tokens of a text, its two marks included."""
        return len(self.encode(text)) + 2

    def files(self) -> dict[str, bytes]:
        """The shortened table; the whole one comes with OpenCLIP."""
        return {} if self._merges is None else {MERGES: _short_table(self._merges)}


class HubTokenizer:
    """A tokenizer of the transformers library, used as OpenCLIP uses it.

    Args:
        folder: with its files.
        context_length: tokens that every text is padded or cut to.
        clean: OpenCLIP's name of what is done to a text first.
        strip_sep_token: put 0 in the place of the mark that ends a text.
        language: of the texts, for tokenizers of several.
        options: the library's own.
    Raises:
        WeightsError: a folder that the library can't read, or a tokenizer that can't pad.
    """

    def __init__(
        self,
        folder: Path,
        context_length: int,
        *,
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str | None = None,
        **options: Any,
    ) -> None:
        from transformers import AutoTokenizer

        self.folder, self.context_length = folder, context_length
        self._clean: Callable[[str], str] = get_clean_fn(clean)
        self._strips = strip_sep_token
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        except Exception as error:  # whatever the library and what it parses with raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(
                f"{folder}: holds no tokenizer that transformers can read ({reason}); copy all its files."
            ) from None
        if self.tokenizer.pad_token_id is None:
            raise WeightsError(
                f"{folder}: its tokenizer has no padding token, which batches of texts need; name one in its "
                "tokenizer_config.json."
            )
        if language is not None and callable(
            speak := getattr(self.tokenizer, "set_src_lang_special_tokens", None)
        ):
            speak(language)
        self._pad = int(self.tokenizer.pad_token_id)
        self.vocab_size = len(self.tokenizer)
        self._content = {
            name: (folder / name).read_bytes()
            for name in (*(name for names in ALTERNATIVES for name in names), *_FURTHER)
            if (folder / name).is_file()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> HubTokenizer:
        return self  # never changes, and large vocabularies copy slowly

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, context_length)."""
        tokens: Tensor = self.tokenizer(
            [self._clean(text) for text in texts],
            return_tensors="pt",
            max_length=self.context_length,
            padding="max_length",
            truncation=True,
        ).input_ids
        if self._strips:
            tokens = tokens.masked_fill(tokens == self.tokenizer.sep_token_id, 0)
        return tokens

    def inside(self, tokens: Tensor) -> Tensor:
        """From the first token that is no padding to the last; with the end mark where that pads too."""
        known = (tokens != self._pad).int()
        if self._pad == self.tokenizer.eos_token_id:
            known = torch.cat([torch.ones_like(known[:, :1]), known[:, :-1]], dim=1) | known
        before, behind = known.cummax(dim=1).values, known.flip(1).cummax(dim=1).values.flip(1)
        return (before & behind).bool()

    def length(self, text: str) -> int:
        """Tokens of a text, its marks included."""
        return len(self.tokenizer(self._clean(text), truncation=False, verbose=False).input_ids)

    def files(self) -> dict[str, bytes]:
        """All that it was read from."""
        return dict(self._content)


@functools.lru_cache(maxsize=8)
def _short_table(merges: int) -> bytes:
    with gzip.open(default_bpe()) as stream:
        lines = stream.read().decode().split("\n")[: merges + 1]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def count_merges(table: Path) -> int:
    """How many merges of CLIP's byte-pair table a shortened one has kept.

    Raises:
        WeightsError: it is no beginning of that table.
    """
    try:
        with gzip.open(table) as stream:
            found = stream.read()
    except (OSError, EOFError, zlib.error):
        found = b""
    merges = found.count(b"\n")
    if gzip.decompress(_short_table(merges)) != found:
        raise WeightsError(f"{table}: is no beginning of CLIP's own byte-pair table; copy it again.")
    return merges


def vocabulary_size(bpe_merges: int) -> int:
    """Rows of a shortened byte-pair table's token table: bytes, bytes ending a word, merges, two marks."""
    return 512 + bpe_merges + 2


def build_tokenizer(
    text_config: Mapping[str, Any], bpe_merges: int | None, beside: Path | None = None
) -> Tokenizer:
    """The tokenizer that belongs to an OpenCLIP text config.

    Args:
        text_config: `text_cfg` of a model config.
        bpe_merges: of a shortened byte-pair table.
        beside: a folder that may hold the tokenizer's files, and is looked into first.
    Raises:
        FetchError: its files are not on this machine and can't be had.
        WeightsError: files that are no tokenizer.
    """
    options = dict(text_config.get("tokenizer_kwargs") or {})
    context_length = int(text_config.get("context_length") or 77)
    name = text_config.get("hf_tokenizer_name")
    if not name:
        options.pop("bpe_path", None)  # of the machine that it was written on
        return BytePairs(bpe_merges, context_length, **options)
    if beside is not None and has_tokenizer(beside):
        folder = beside
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        folder = hub.fetch_files(name, ALTERNATIVES, also_small=True)
    return HubTokenizer(folder, context_length, **options)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds what makes a tokenizer of the transformers library."""
    return any(all((folder / name).is_file() for name in names) for names in ALTERNATIVES)


def shorten(tokenizer: Tokenizer, text: str) -> str:
    """The longest run of a text's first whole words that the tokenizer does not have to cut.

    A first word that is too long by itself stays, and is cut in its middle when it is tokenized.
    """
    if tokenizer.length(text) <= tokenizer.context_length:
        return text
    words = text.split()
    fits, fails = 1, len(words)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        is_short = tokenizer.length(" ".join(words[:middle])) <= tokenizer.context_length
        fits, fails = (middle, fails) if is_short else (fits, middle)
    return " ".join(words[:fits]).rstrip(" ,;:-–—")
