"""What a family of priors or decoders must answer: stages and `crest.generate` know this and no network.

A further family (weights of another project, behind its own door) is one entry in PRIORS or DECODERS: the
class of its spec and that of its model. `tests/crest/models/test_families.py` is the contract that each must
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from crest.checkpoint import card_spec, load_model
from crest.config import Config, Prediction, read_spec
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from crest.models.clip import TextFeatures
from crest.models.fingerprint import verify

KIND_PRIOR, KIND_DECODER = "prior", "decoder"
DEFAULT = "crest"
"""The family of weights whose card names none."""


class FamilySpec(Protocol):
    """What the spec of every family says (a `Config` has the first of these)."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All that a model is built from, JSON-able, for the card."""
        ...

    @property
    def image_embed_dim(self) -> int:
        """D of the CLIP that it belongs to."""
        ...

    @property
    def text_width(self) -> int | None:
        """K of the CLIP that it belongs to; None where it reads no text encodings."""
        ...

    @property
    def max_text_len(self) -> int:
        """Tokens of text that it reads."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        ...

    @property
    def self_cond(self) -> bool:
        """Whether it takes the x_start that it predicted before."""
        ...


class DecoderFamilySpec(FamilySpec, Protocol):
    """What the spec of a decoder says as well."""

    @property
    def unet_number(self) -> int:
        """Its place in the cascade, from 1."""
        ...

    @property
    def side_px(self) -> int:
        """Side of the pictures that it draws."""
        ...

    @property
    def lowres_side_px(self) -> int | None:
        """Side of the picture that it enlarges; None for the first of a cascade."""
        ...

    @property
    def lowres_noise_cond(self) -> bool:
        """Whether it is told how much noise the small picture was given."""
        ...

    @property
    def stride_px(self) -> int:
        """What the side of a picture, or of a crop of one, must be a multiple of."""
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether it predicts twice the channels of x_t, the second half for the variance of a step."""
        ...


@runtime_checkable
class PriorFamily(Protocol):
    """A network that draws CLIP image embeddings from text; also an nn.Module whose forward predicts."""

    @property
    def spec(self) -> FamilySpec:
        """What it is."""
        ...

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """How much noise is in x_t."""
        ...

    def encode_embeds(self, image_embed: Tensor) -> Tensor:
        """Unit-length image embeddings (B, D) as what diffuses; never in place."""
        ...

    def decode_embeds(self, x: Tensor) -> Tensor:
        """What diffused as unit-length image embeddings (B, D), float32."""
        ...

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        text_embed: Tensor,
        text_encodings: Tensor | None,
        text_keep: Tensor,
        image_keep: Tensor,
        *,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, D), float32, for x_t (B, D) at timesteps t (B,); a mask's False hides."""
        ...

    def sample(
        self, text: TextFeatures, *, seeds: Sequence[int], cond_scale: float, steps: int, candidates: int
    ) -> Tensor:
        """One unit-length image embedding per text, (B, D) float32."""
        ...

    @property
    def lora_targets(self) -> Sequence[str]:
        """Patterns of the matrices that an adapter sits beside, unless a config names others."""
        ...

    def save_memory(self) -> None:
        """Keep little for the way back and compute it again there."""
        ...


@runtime_checkable
class DecoderFamily(Protocol):
    """One network of a cascade that draws pictures; also an nn.Module whose forward predicts.

    What diffuses is pixels or latents of them: only `encode_images`, `decode_images`, `x_shape` and `x_limit`
    know which.
    """

    @property
    def spec(self) -> DecoderFamilySpec:
        """What it is."""
        ...

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """How much noise is in x_t."""
        ...

    @property
    def x_shape(self) -> tuple[int, int, int]:
        """Shape of one whole picture as what diffuses."""
        ...

    @property
    def x_limit(self) -> float | None:
        """The largest absolute value that a clean x can have; None where there is no such bound."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] as what diffuses."""
        ...

    def decode_images(self, x: Tensor) -> Tensor:
        """What diffused as pictures (B, 3, H, W) float32 in [0, 1]."""
        ...

    def conditions(
        self,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        lowres: Tensor | None = None,
        lowres_noise_level: Tensor | None = None,
    ) -> Any:
        """What does not depend on the timestep, computed once per picture.

        Args:
            image_embed: (B, D) unit length; text_encodings: (B, L, K) or None.
            image_keep, text_keep: (B,) bool; False hides a condition.
            lowres: the small picture in [-1, 1], (B, 3, h, w), as `crest.diffusion.lowres` made it.
            lowres_noise_level: (B,), what that says of its noise.
        """
        ...

    def predict(self, x_t: Tensor, t: Tensor, conditions: Any, self_cond: Tensor | None = None) -> Tensor:
        """The prediction, float32, for x_t (B, C, h, w) at timesteps t (B,)."""
        ...

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        *,
        lowres: Tensor | None = None,
        lowres_noise_level: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """`conditions` and `predict` in one, which is what training calls."""
        ...

    @property
    def lora_targets(self) -> Sequence[str]:
        """Patterns of the matrices that an adapter sits beside, unless a config names others."""
        ...

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """Weights that read text, which a run may leave as they are."""
        ...

    def save_memory(self) -> None:
        """Keep little for the way back and compute it again there."""
        ...


@runtime_checkable
class Sketched(Protocol):
    """A decoder that can make a first guess from its conditions alone; forward then takes `sketch_alone`."""

    @property
    def has_sketch(self) -> bool:
        """Whether this one does."""
        ...

    def let_sketch_move(self) -> None:
        """Add what learns where the guess stands."""
        ...

    def beside_sketch(self) -> Iterable[nn.Parameter]:
        """All weights but the sketch's."""
        ...


F = TypeVar("F")


@dataclass(frozen=True)
class Door(Generic[F]):
    """How a family is built."""

    spec_class: type[Config]
    model_class: Callable[[Any], F]


def _crest_prior() -> Door[PriorFamily]:
    from crest.models.prior import Prior, PriorSpec

    return Door(PriorSpec, Prior)


def _crest_decoder() -> Door[DecoderFamily]:
    from crest.models.decoder import Decoder, DecoderSpec

    return Door(DecoderSpec, Decoder)


PRIORS: dict[str, Callable[[], Door[PriorFamily]]] = {DEFAULT: _crest_prior}
DECODERS: dict[str, Callable[[], Door[DecoderFamily]]] = {DEFAULT: _crest_decoder}


def build_prior(values: Mapping[str, Any], where: str) -> tuple[PriorFamily, str]:
    """A prior with random weights from a section of a config; its key `family` names which, crest by default.

    Returns:
        the model and its family's name.
    Raises:
        ConfigError: a family that is not known, or a spec that is none.
    """
    return _build(PRIORS, values, where)


def build_decoder(values: Mapping[str, Any], where: str) -> tuple[DecoderFamily, str]:
    """A decoder with random weights from a section of a config; see `build_prior`."""
    return _build(DECODERS, values, where)


def load_prior_family(place: str | Path) -> tuple[PriorFamily, str, dict[str, Any]]:
    """A prior of the family that its card names: model, hash, card.

    Raises:
        WeightsError: nothing there, weights of another architecture, or of a family that is not known.
    """
    return _load(PRIORS, place, KIND_PRIOR)


def load_decoder_family(place: str | Path) -> tuple[DecoderFamily, str, dict[str, Any]]:
    """A decoder of the family that its card names; see `load_prior_family`."""
    return _load(DECODERS, place, KIND_DECODER)


def as_module(model: object) -> nn.Module:
    """The network that a family also is."""
    assert isinstance(model, nn.Module)
    return model


def _build(
    doors: Mapping[str, Callable[[], Door[F]]], values: Mapping[str, Any], where: str
) -> tuple[F, str]:
    name = values.get("family", DEFAULT)
    if name not in doors:
        raise ConfigError(f'{where}.family: found "{name}", expected one of {", ".join(doors)}; name one.')
    door = doors[name]()
    given = {key: value for key, value in values.items() if key != "family"}
    return door.model_class(read_spec(door.spec_class, given, where)), name


def _load(
    doors: Mapping[str, Callable[[], Door[F]]], place: str | Path, kind: str
) -> tuple[F, str, dict[str, Any]]:
    def build(path: Path, card: Mapping[str, Any]) -> F:
        name = card.get("family", DEFAULT)
        if name not in doors:
            raise WeightsError(
                f'{path.with_suffix(".json")}: names the family "{name}", expected one of '
                f"{', '.join(doors)}; take a release of Crest that knows it."
            )
        door = doors[name]()
        return door.model_class(card_spec(path, card, door.spec_class))

    return load_model(place, kind, build, verify)
