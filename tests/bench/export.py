"""Time a bundle's image encoder beside the plain export of transformers' model: the same weights, the same run.

    python -m tests.bench.export ViT-B-32 --providers openvino cpu --batch 32

The weights are random and in their true shape, saved by transformers and read by `anyclass-export` from that folder.
The plain export is the usual code: `torch.onnx.export` of ``CLIPVisionModelWithProjection``, with either of torch's
exporters. A round runs every graph once, so that other work on the machine slows all of them alike; processor time is
counted too, which a busy machine changes less. ``--operators`` shows the operators after the runtimes' fusions
instead.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from model_export.checkpoints.model_source import SourceOptions
from model_export.export.console import Narrator
from model_export.export.convert import Conversion, convert
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.config import ClipConfig, VisionTransformerConfig
from model_export.families.open_clip_torch.package import import_torchvision
from model_export.families.sizes import named_size
from model_export.training.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from service.errors import AnyclassError
from service.model.engine.providers import resolve
from service.model.engine.sessions import open_session
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER

import_torchvision()  # transformers imports it

import transformers  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

BUNDLE: Final = "bundle"
PLAIN: Final = {"transformers, dynamo": True, "transformers, TorchScript": False}
"""By name, whether to use torch's newer exporter."""

TOLERANCE: Final = 1e-4

Graphs = dict[str, Path]


def main() -> int:
    """Print tables; return 1 if the graphs do not compute the same vectors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", nargs="?", default="ViT-B-32", help="a CLIP of 'anyclass-export list' with a ViT")
    parser.add_argument("--providers", nargs="+", default=["openvino", "cpu"], help="openvino/bf16 is one too")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of one run")
    parser.add_argument("--keep", type=Path, help="put the graphs here; by default they are deleted")
    parser.add_argument("--operators", action="store_true", help="show the optimised graphs' operators, time nothing")
    options = parser.parse_args()
    config = named_size(options.size).config
    if not isinstance(config, ClipConfig) or not isinstance(config.image, VisionTransformerConfig):
        parser.error(f"{options.size}: transformers has no such CLIP; name one with a ViT")
    _silence()
    with tempfile.TemporaryDirectory(prefix="anyclass-bench-") as temporary:
        folder = options.keep or Path(temporary)
        images, texts = _exported(config, folder)
        if options.operators:
            _show_operators("image encoder", images, config.image.heads, config.image.width, folder)
            _show_operators("text encoder", texts, config.text.heads, config.text.width, folder)
            return 0
        pixels = np.random.default_rng(0).integers(
            0, 256, (options.batch, config.image.image_size, config.image.image_size, 3), np.uint8
        )
        same = [_race(images, pixels, name, options) for name in options.providers]
    return 0 if all(same) else 1


def _silence() -> None:
    """Silence the libraries' messages about weights of the other tower and missing packages."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def _exported(config: ClipConfig, folder: Path) -> tuple[Graphs, Graphs]:
    """Save random weights and export both towers in each way."""
    checkpoint, bundle = folder / "checkpoint", folder / BUNDLE
    _save(config, checkpoint)
    convert(Conversion(str(checkpoint), SourceOptions()), bundle, narrator=Narrator(Console(quiet=True)))
    images, texts = {BUNDLE: bundle / IMAGE_ENCODER}, {BUNDLE: bundle / TEXT_ENCODER}
    size = config.image.image_size
    examples: tuple[tuple[Graphs, Any, Tensor, dict[int, str]], ...] = (
        (images, CLIPVisionModelWithProjection, torch.zeros(2, 3, size, size), {0: "batch"}),
        (texts, CLIPTextModelWithProjection, torch.ones(2, 16, dtype=torch.int64), {0: "batch", 1: "length"}),
    )
    for graphs, model_class, example, axes in examples:
        module = _Embedding(model_class.from_pretrained(checkpoint)).eval()
        for name, dynamo in PLAIN.items():
            graphs[name] = folder / f"{model_class.__name__}-{dynamo}.onnx"
            _export_plainly(module, example, axes, graphs[name], dynamo=dynamo)
    return images, texts


def _save(config: ClipConfig, folder: Path) -> None:
    tokenizer = train_tokenizer(["a photo of a cat"], MIN_VOCAB_SIZE)
    image, text = config.image, config.text
    assert isinstance(image, VisionTransformerConfig)
    saved = CLIPConfig(
        vision_config={
            "hidden_size": image.width,
            "intermediate_size": image.mlp_width or 4 * image.width,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "hidden_act": image.activation,
        },
        text_config={
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width or 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab_size,
            "hidden_act": text.activation,
            "eos_token_id": tokenizer.get_vocab()[END_OF_TEXT],
        },
        projection_dim=config.embed_dim,
    )
    torch.manual_seed(0)
    CLIPModel(saved).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    CLIPImageProcessorPil(size={"shortest_edge": image.image_size}, crop_size=image.image_size).save_pretrained(folder)


class _Embedding(nn.Module):
    """Returns the one required output of transformers' model, because exporters accept no structures."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.model(given)[0]
        return out


def _export_plainly(module: nn.Module, example: Tensor, axes: dict[int, str], path: Path, *, dynamo: bool) -> None:
    shapes: dict[str, Any] = {"dynamic_axes": {"given": axes, "embeddings": {0: "batch"}}}
    if dynamo:
        shapes = {"dynamic_shapes": (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constants of tracing, and the older exporter's age
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=["given"],
            output_names=["embeddings"],
            dynamo=dynamo,
            verbose=False,
            **shapes,
        )


# --- speed -----------------------------------------------------------------------------------------------------------


def _race(graphs: Graphs, pixels: np.ndarray[Any, np.dtype[np.uint8]], name: str, options: argparse.Namespace) -> bool:
    """Run every graph in turn on one provider, and print its time; return whether all gave the same vectors."""
    base, _, compute = name.partition("/")
    try:
        provider = resolve(base, compute="bf16" if compute == "bf16" else "fp32")
    except AnyclassError as exc:
        print(f"{name}: left out. {exc.detail}")  # noqa: T201
        return True
    processor = CLIPImageProcessorPil()
    scaled = (pixels / 255.0 - np.array(processor.image_mean)) / np.array(processor.image_std)
    prepared = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)
    sessions = {graph: open_session(path, provider, threads=options.threads) for graph, path in graphs.items()}
    wall: dict[str, list[float]] = {graph: [] for graph in graphs}
    busy: dict[str, list[float]] = {graph: [] for graph in graphs}
    vectors = {}
    for turn in range(options.rounds + 1):
        for graph, session in sessions.items():
            given = {session.get_inputs()[0].name: pixels if graph == BUNDLE else prepared}
            started, worked = time.perf_counter(), time.process_time()
            (found,) = session.run(None, given)
            if turn:  # the first run of a session is slower
                wall[graph].append(time.perf_counter() - started)
                busy[graph].append(time.process_time() - worked)
            vectors[graph] = found / np.linalg.norm(found, axis=1, keepdims=True)
    table = Table(box=None, title=f"{name}, {len(pixels)} pictures, median of {options.rounds}", title_justify="left")
    for column in ("graph", "ms", "/s", "bundle's speed", "CPU ms", "bundle's speed", "difference"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    medians = {graph: (statistics.median(wall[graph]), statistics.median(busy[graph])) for graph in graphs}
    difference = {graph: float(np.abs(found - vectors[BUNDLE]).max()) for graph, found in vectors.items()}
    for graph, (elapsed, worked) in medians.items():
        table.add_row(
            graph,
            f"{1e3 * elapsed:.0f}",
            f"{len(pixels) / elapsed:.1f}",
            f"{elapsed / medians[BUNDLE][0]:.2f}x",
            f"{1e3 * worked:.0f}",
            f"{worked / medians[BUNDLE][1]:.2f}x",
            f"{difference[graph]:.0e}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return compute == "bf16" or max(difference.values()) <= TOLERANCE


# --- fusions ---------------------------------------------------------------------------------------------------------


def _show_operators(title: str, graphs: Graphs, heads: int, width: int, folder: Path) -> None:
    """Print the operators of each graph: as exported, as the CPU provider runs it, and as fused for CUDA.

    ONNX Runtime's offline tool fuses for CUDA, and needs no GPU.
    """
    counts: dict[str, Counter[str]] = {}
    for name, path in graphs.items():
        counts[f"{name}\nexported"] = _operators(onnx.load(path, load_external_data=False))
        counts[f"{name}\nCPU"] = _operators(_for_cpu(path, folder))
        fused = optimize_model(
            str(path),
            model_type="clip",
            num_heads=heads,
            hidden_size=width,
            optimization_options=FusionOptions("clip"),
            opt_level=0,
            use_gpu=True,
        )
        counts[f"{name}\nCUDA"] = _operators(fused.model)
    table = Table(title=title, title_justify="left")
    table.add_column("operator")
    for name in counts:
        table.add_column(name, justify="right")
    for operator in sorted(set().union(*counts.values())):
        table.add_row(operator, *(str(count[operator] or "") for count in counts.values()))
    table.add_row("all", *(str(count.total()) for count in counts.values()))
    Console(width=max(150, Console().width)).print(table)


def _for_cpu(path: Path, folder: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime's CPU provider computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx", load_external_data=False)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)


if __name__ == "__main__":
    sys.exit(main())
