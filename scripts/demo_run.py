"""Put the weights of the shipped demo bundle back into a training run, from which `train --from` goes on.

    PYTHONPATH=. python scripts/demo_run.py service/bundles/demo DATA OUT

DATA is a folder of Parquet files with pictures, OUT the run to write. The export folds batch norms into the kernels
before them. Here each norm gets the mean and the variance that its channel has on pictures of DATA, and the gain and
the bias that undo them: the run's vectors are the bundle's, and its norms are those of training.
"""

import argparse
import io
import json
import math
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pyarrow.parquet as pq
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.training_run import CARD, CONFIG, WEIGHTS
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel
from model_export.families.clip.residual_conv import ConvStage, ResidualConv
from service.model.loading import load_bundle
from service.model.manifest import IMAGE_ENCODER, TEMPLATES, TEXT_ENCODER, TOKENIZER, ImageSection, SoftmaxScoring
from service.model.resizing import preprocess

PICTURES: Final = 150
"""Of each file of DATA."""
ROW_NORM: Final = 2.0
"""Length of a channel's kernel in the run: batch norm takes any, Muon's steps have the size of its learning rate."""
SEED: Final = 2026
RECIPES: Final = Path(__file__).parent.parent / "model_export" / "recipes"


def main() -> int:
    """Write the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("data", type=Path, help="folder of Parquet files with a column image")
    parser.add_argument("out", type=Path, help="run to write")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    manifest = bundle.manifest
    recipe_file = recipe_of(manifest.provenance.recipe)
    recipe: dict[str, Any] = dict(manifest.provenance.recipe or {})
    ends = {"end_of_text_id": manifest.text.end_of_text_id, "pad_id": manifest.text.pad_id}
    config = ClipConfig.model_validate(
        {
            "embed_dim": manifest.dim,
            "image": recipe["model"]["image"],
            "text": {**recipe["model"]["text"], **ends},
        }
    )
    model = ClipModel(config).eval()
    weights = model.state_dict() | graph_weights(options.bundle / TEXT_ENCODER)
    if not isinstance(manifest.scoring, SoftmaxScoring) or not isinstance(model.visual, ResidualConv):
        raise SystemExit(f"{options.bundle}: is not the demo's architecture")
    weights["logit_scale"] = torch.tensor(math.log(manifest.scoring.logit_scale))
    folded = graph_weights(options.bundle / IMAGE_ENCODER)
    weights |= {name: value for name, value in folded.items() if name in weights}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    unfold(model.visual, folded, pictures(options.data, manifest.image))
    options.out.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, options.out / WEIGHTS)
    shutil.copyfile(options.bundle / TOKENIZER, options.out / TOKENIZER)
    said = {
        "name": manifest.name,
        "aliases": list(manifest.aliases),
        "model": config.model_dump(mode="json"),
        "image": manifest.image.model_dump(mode="json"),
        "text": manifest.text.model_dump(mode="json"),
        "templates": json.loads((options.bundle / TEMPLATES).read_text("utf-8")),
        "provenance": {"source": manifest.provenance.source, "licence": manifest.provenance.licence},
    }
    (options.out / CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")
    shutil.copyfile(recipe_file, options.out / RECIPE)
    if manifest.provenance.card:
        (options.out / CARD).write_text(manifest.provenance.card, "utf-8")
    return 0


def recipe_of(recipe: Mapping[str, Any] | None) -> Path:
    """Return the recipe's file in this repository; the bundle has its content only."""
    for path in sorted(RECIPES.glob("*.toml")):
        if tomllib.loads(path.read_text("utf-8")) == recipe:
            return path
    raise SystemExit("the bundle was trained by no recipe of this version")


def graph_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of an exported graph by their names in the model, float32.

    Names of linear weights are lost in the export, whose matrix products take them transposed: the bias added next
    names them.
    """
    graph = onnx.load(path).graph
    arrays = {initializer.name.removesuffix(".fp16"): initializer for initializer in graph.initializer}
    found = {name.removeprefix("model."): _tensor(array) for name, array in arrays.items() if name.startswith("model.")}
    factors = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.startswith("model.") and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in factors), None)
        if bias and product:
            weight = bias.removeprefix("model.").removesuffix("bias") + "weight"
            found[weight] = _tensor(arrays[factors[product]]).T
    found.pop("text.causal_mask", None)
    return found


def pictures(folder: Path, section: ImageSection) -> Tensor:
    """Return normalised pictures of each file in a folder: float32 ``[pictures, 3, height, width]``."""
    rng, found = np.random.default_rng(SEED), []
    for path in sorted(folder.glob("*.parquet")):
        column = pq.read_table(path, columns=["image"])["image"]
        for row in rng.choice(len(column), min(PICTURES, len(column)), replace=False):
            image = Image.open(io.BytesIO(column[int(row)].as_py())).convert("RGB")
            found.append((preprocess(image, section) / 255 - section.mean) / section.std)
    if not found:
        raise SystemExit(f"{folder}: has no Parquet file with pictures")
    return torch.from_numpy(np.stack(found).astype(np.float32)).permute(0, 3, 1, 2)


@torch.no_grad()
def unfold(tower: ResidualConv, folded: Mapping[str, Tensor], pixels: Tensor) -> None:
    """Set the kernels and the norms of a tower's stages from kernels with folded norms; the stem is set already."""
    x = tower.stem(pixels)
    for number, stage in enumerate(tower.stages):
        assert isinstance(stage, ConvStage)  # noqa: S101 - tells the type checker
        names = [f"visual.stages.{number}.conv{layer}." for layer in (1, 2, 3)]
        convolved = functional.max_pool2d(_set(stage.conv1, folded, names[0], x), 2)
        first = stage.act(_normed(stage.bn1, folded, names[0], convolved))
        residual = stage.act(_normed(stage.bn2, folded, names[1], _set(stage.conv2, folded, names[1], first)))
        residual = stage.act(_normed(stage.bn3, folded, names[2], _set(stage.conv3, folded, names[2], residual)))
        x = residual + first


def _set(convolution: nn.Conv2d, folded: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Set a convolution to kernels of one length, and return its output."""
    convolution.weight.copy_(folded[f"{name}weight"] / _gains(folded, name)[:, None, None, None])
    out: Tensor = convolution(x)
    return out


def _normed(norm: nn.BatchNorm2d, folded: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Set a norm to the statistics of ``x``, and to the gain and the bias that the folded kernel had."""
    assert norm.running_mean is not None  # noqa: S101 - tells the type checker
    assert norm.running_var is not None  # noqa: S101
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(_gains(folded, name) * (variance + norm.eps).sqrt())
    norm.bias.copy_(_gains(folded, name) * mean + folded[f"{name}bias"])
    out: Tensor = norm(x)
    return out


def _gains(folded: Mapping[str, Tensor], name: str) -> Tensor:
    """Return by how much the kernels are shortened."""
    lengths: Tensor = torch.linalg.vector_norm(folded[f"{name}weight"].flatten(1), dim=1)
    return lengths.clamp_min(1e-6) / ROW_NORM


def _tensor(initializer: onnx.TensorProto) -> Tensor:
    values: Tensor = torch.from_numpy(numpy_helper.to_array(initializer).copy()).float()
    return values


if __name__ == "__main__":
    sys.exit(main())
