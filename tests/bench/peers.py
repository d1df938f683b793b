"""Peers of the service, with environment, command and request of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import wire
from tests.bench.environments import Environment
from tests.support.places import ROOT

_TORCH: Final = ("torch==2.13.0",)
_SERVERS: Final = ROOT / "tests" / "bench" / "peer_servers"


@dataclass(frozen=True)
class Models:
    """One model in both served forms."""

    hugging_face: Path
    bundle: Path


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: short name for tables and options.
        what: a sentence for the results page.
        environment: its environment.
        packages: packages whose versions are reported.
        command: returns the arguments of the interpreter that start it, for models and a port.
        ready: path that answers 200 once it is ready.
        request: returns its request, for models, a picture and labels.
    """

    name: str
    what: str
    environment: Environment
    packages: tuple[str, ...]
    command: Callable[[Models, int], list[str]]
    ready: str
    request: Callable[[Models, bytes, Sequence[str]], bytes]


def _infinity(models: Models, port: int) -> list[str]:
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--no-model-warmup"]
    program = ["-c", "from infinity_emb.cli import cli; cli()", "v2", "--model-id", str(models.hugging_face)]
    return [*program, *options, "--host", "127.0.0.1", "--port", str(port)]


PEERS: Final = (
    Peer(
        name="infinity",
        what="infinity-emb, torch on the CPU: image embeddings only, labels are left to the client",
        environment=Environment(
            "infinity",
            (
                _TORCH,
                # Its extra "vision" brings torchvision, which CLIP does not need.
                ("infinity-emb[server,torch]==0.0.78", "click<8.2", "transformers<5", "aiohttp", "pillow"),
            ),
        ),
        packages=("infinity-emb", "torch", "transformers"),
        command=_infinity,
        ready="/health",
        request=lambda models, picture, _: wire.infinity_embeddings(str(models.hugging_face), picture),
    ),
    Peer(
        name="transformers",
        what="FastAPI around transformers' zero-shot pipeline, fp32, each request by itself, labels encoded every time",
        environment=Environment("transformers", (_TORCH, ("transformers>=5", "pillow", "fastapi", "uvicorn"))),
        packages=("transformers", "torch", "fastapi"),
        command=lambda models, port: [
            str(_SERVERS / "plain_transformers.py"),
            str(models.hugging_face),
            str(port),
        ],
        ready="/health",
        request=lambda _, picture, labels: wire.picture_as_body("/classify", picture, labels),
    ),
    Peer(
        name="litserve",
        what="LitServe around onnxruntime with our own fp32 encoders, batches of up to 32, label vectors remembered",
        environment=Environment("litserve", (("litserve", "onnxruntime", "pillow", "numpy", "tokenizers"),)),
        packages=("litserve", "onnxruntime", "pillow"),
        command=lambda models, port: [str(_SERVERS / "litserve_onnx.py"), str(models.bundle), str(port)],
        ready="/health",
        request=lambda _, picture, labels: wire.litserve_predict(picture, labels),
    ),
)
