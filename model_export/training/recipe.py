"""Read the recipe of a training run: a TOML file, checked completely before any costly work."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from model_export.architectures.activations import Activation
from model_export.data.parquet import PairColumns
from model_export.errors import SourceError
from model_export.families.clip.config import ImageTowerConfig, ResidualConvConfig
from model_export.families.family import ImageTowerShape
from model_export.families.sizes import named_size
from model_export.files import Section
from model_export.training.recipe_file import located, read_recipe_file

Tower: TypeAlias = Literal["image", "text"]


class ColumnsSection(Section):
    """Names of the Parquet columns."""

    image: str = "image"
    text: str = "text"
    label: str = "label"

    def columns(self) -> PairColumns:
        """Return the names as the reader takes them."""
        return PairColumns(self.image, self.text, self.label)


class DataSection(Section):
    """Files of the pairs, and how to read them."""

    files: tuple[str, ...] = Field(min_length=1)
    columns: ColumnsSection = ColumnsSection()
    validation_every: NonNegativeInt = 25
    shuffle_window: PositiveInt = 64
    workers: NonNegativeInt = 2
    max_broken: float = Field(default=0.0, ge=0, lt=1)


class AugmentSection(Section):
    """See :class:`model_export.data.augment.Augmentation`."""

    crop_area: tuple[float, float] = (0.9, 1.0)
    shift: float = Field(default=0.0, ge=0, lt=0.5)
    flip: bool = False
    zoom_area: tuple[float, float] = (0.2, 0.9)

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSection:
        for name, (low, high) in (("crop_area", self.crop_area), ("zoom_area", self.zoom_area)):
            if not 0 < low <= high <= 1:
                msg = f"{name} must hold two shares, 0 < smallest <= largest <= 1"
                raise ValueError(msg)
        return self


class CaptionsSection(Section):
    """Templates of captions, the share of class names in them, and the template sets of the bundle."""

    templates: tuple[str, ...] = Field(min_length=1)
    class_name_share: float = Field(default=0.5, ge=0, le=1)
    template_sets: dict[str, tuple[str, ...]] = Field(default={"default": ("a photo of a {}.",), "none": ("{}",)})

    @model_validator(mode="after")
    def _one_placeholder(self) -> CaptionsSection:
        for template in (*self.templates, *(t for ts in self.template_sets.values() for t in ts)):
            if template.count("{}") != 1:
                msg = f"template {template!r} must hold {{}} exactly once"
                raise ValueError(msg)
        if "default" not in self.template_sets:
            msg = "template_sets must have a set named default"
            raise ValueError(msg)
        return self


class ImageInputSection(Section):
    """Preprocessing of an image by the service, and the normalisation inside the graph (0..1 units)."""

    resize: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    crop: Literal["center", "none"] = "center"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.26862954, 0.26130258, 0.27577711)


class TextSection(Section):
    """The text tower; the trained tokenizer sets its token ids."""

    vocab_size: PositiveInt = 49408
    context_length: int = Field(default=77, ge=4)
    width: PositiveInt = 512
    layers: PositiveInt = 12
    heads: PositiveInt = 8
    activation: Activation = "quick_gelu"


class ModelSection(Section):
    """Both towers and the joint space: a size by its name, or the towers; neither, if the run starts from a model."""

    size: str | None = None
    embed_dim: PositiveInt = 512
    image: ImageTowerConfig | None = None
    text: TextSection = TextSection()
    from_start: Literal["both", "image"] = "both"
    """Towers that ``--from`` gives. With ``image``, text tower and tokenizer are new, as in LiT (Zhai et al. 2022)."""
    checkpoint_blocks: bool = False
    """Compute the blocks of transformers again in the backward pass."""

    @model_validator(mode="after")
    def _one_way(self) -> ModelSection:
        towers = self.model_fields_set & {"embed_dim", "image", "text"}
        if self.size is not None:
            if towers:
                msg = f"size {self.size!r} states the towers; leave {', '.join(sorted(towers))} out"
                raise ValueError(msg)
            try:
                named_size(self.size)
            except SourceError as exc:
                raise ValueError(str(exc)) from exc
        elif self.from_start == "image" and self.image is None:
            msg = 'from_start = "image" needs the towers: add [model.image], as the start has it, and [model.text]'
            raise ValueError(msg)
        elif towers and self.image is None:
            msg = f"{', '.join(sorted(towers))} without [model.image]; add it, or name a size"
            raise ValueError(msg)
        return self

    @property
    def is_stated(self) -> bool:
        """Return whether the recipe states the towers."""
        return self.size is not None or self.image is not None


class ObjectiveSection(Section):
    """See :mod:`model_export.training.objective`."""

    loss: Literal["softmax", "sigmoid"] | None = None
    """Unset, it is the model's own: ``sigmoid`` for a SigLIP, ``softmax`` for a new CLIP."""
    chunk: PositiveInt | None = None
    """Pictures whose pairs the sigmoid loss compares at a time."""
    same_meaning: Literal["ignore", "off"] = "ignore"
    """``ignore``: pairs of one class or one text are not each other's negatives; ``off``: the paper's loss."""


class DistillationSection(Section):
    """A teacher, whose similarities over the batch are learned beside the pairs."""

    teacher: str
    """A bundle, any checkpoint that can be exported, or a hub id; a path is relative to the recipe's folder."""
    weight: float = Field(default=0.5, gt=0, le=1)


class PhaseSection(Section):
    """From the share ``start`` of the run on, train at ``size`` pixels with ``zoom_share`` of the images zoomed."""

    start: float = Field(ge=0, lt=1)
    size: PositiveInt
    zoom_share: float = Field(default=0.0, ge=0, le=1)


class OptimSection(Section):
    """Optimisation; except for batch and warm-up, the defaults are the paper's for ViTs."""

    epochs: PositiveInt = 32
    batch_size: int = Field(default=1024, ge=2)
    lr: PositiveFloat = 5e-4
    muon_lr: PositiveFloat | None = None
    """Peak rate of Muon for the blocks' matrices; if unset, AdamW updates everything."""
    weight_decay: float = Field(default=0.2, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    warmup_steps: NonNegativeInt = 2000
    clip_grad_norm: PositiveFloat | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    micro_batch: PositiveInt | None = None
    """Pairs whose activations are in memory at a time; loss and gradients stay those of the batch."""
    accept_batch_norm: bool = False
    """Allow micro-batches for towers whose batch norms then see fewer pairs."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights."""
    compile: bool = False
    shard: bool = False
    """Divide the weights of both towers among the processes."""
    freeze: tuple[Tower, ...] = ()
    """Towers that keep the weights of the start."""
    phases: tuple[PhaseSection, ...] = ()

    @model_validator(mode="after")
    def _divisible(self) -> OptimSection:
        for present, problem in (
            (self.muon_lr is not None, "muon_lr: Muon needs whole matrices, of which each process has a part"),
            (self.compile, "compile: compiled towers do not put their blocks together"),
            (self.precision == "fp16", 'precision = "fp16": its scaler takes whole gradients; use "bf16"'),
        ):
            if self.shard and present:
                msg = f"shard cannot be combined with {problem}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _one_trained(self) -> OptimSection:
        if len(set(self.freeze)) > 1:
            msg = "freeze names both towers, so nothing would be trained; freeze one"
            raise ValueError(msg)
        return self


class Recipe(Section):
    """Everything that decides a run, except for the machine."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: NonNegativeInt = 0
    licence: str | None = None
    data: DataSection
    augment: AugmentSection = AugmentSection()
    captions: CaptionsSection
    input: ImageInputSection = ImageInputSection()
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    distillation: DistillationSection | None = None
    optim: OptimSection = OptimSection()
    log_every: PositiveInt = 20
    evaluate_every: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 200

    @model_validator(mode="after")
    def _sizes_fit(self) -> Recipe:
        phases = self.optim.phases
        if self.model.image is not None:
            self.check_phases(self.model.image)
        if phases and phases[0].start != 0:
            msg = "the first of optim.phases must start at 0"
            raise ValueError(msg)
        return self

    def check_phases(self, image: ImageTowerShape) -> None:
        """Check that an image tower can be trained at the sizes of ``optim.phases``. Raises ValueError."""
        if isinstance(image, ResidualConvConfig):
            return
        if any(phase.size != image.image_size for phase in self.optim.phases):
            msg = (
                "only a residual_conv tower can train at another size; "
                f"set each size in optim.phases to image_size, {image.image_size}"
            )
            raise ValueError(msg)


def read_recipe(path: Path, *, data: Path | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the TOML file.
        data: base folder of the data files that are no URLs; by default the recipe's own folder.

    Raises:
        RecipeError: the file cannot be read, is not TOML, or has unknown keys or invalid values.
    """
    recipe = read_recipe_file(path, Recipe)
    files = tuple(located(file, data or path.parent) for file in recipe.data.files)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"files": files})})
    taught = recipe.distillation
    if taught is not None and (place := path.parent / taught.teacher).exists():
        recipe = recipe.model_copy(update={"distillation": taught.model_copy(update={"teacher": str(place.resolve())})})
    return recipe
