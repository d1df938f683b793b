"""What a recipe asks of a device: lower precision, exact kernels, and compiled towers."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch

from model_export.architectures.towers import TwoTowers
from model_export.errors import TrainingError, first_line
from model_export.training.recipe import Recipe

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, and of ARM


def chosen(precision: str, device: torch.device) -> str:
    """Return the precision that ``auto`` is on a device: bf16 if it has instructions for it, otherwise fp32.

    A CPU without them computes bf16 in software: a step of the demo model took 6 times as long as in fp32.
    """
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16(device) else "fp32"


def slow_precision(recipe: Recipe, device: torch.device) -> str | None:
    """Return a note if a recipe asks for a precision that a device computes in software."""
    if recipe.optim.precision != "bf16" or _has_bf16(device):
        return None
    return (
        f"this {device.type.upper()} has no instructions for bf16: each step takes several times as long as in fp32; "
        'take optim.precision = "auto" or "fp32"'
    )


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Check that a device can do what a recipe asks of it.

    Raises:
        TrainingError: fp16 on a CPU, or no compiler for ``optim.compile``.
    """
    if recipe.optim.precision == "fp16" and device.type != "cuda":
        msg = (
            f"optim.precision is fp16, which is for GPUs before bf16: a {device.type.upper()} computes it more slowly "
            'than fp32, in a smaller range; use "bf16" or "fp32"'
        )
        raise TrainingError(msg)
    if recipe.optim.compile:
        _check_compiler(device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a model is computed."""
    precision = chosen(precision, device)
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, _DTYPES[precision])


def make_exact(seed: int, device: torch.device) -> None:
    """Seed torch; on a CPU, take kernels that always add in the same order."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Filling memory only helps to debug kernels that leave some of it unwritten, and costs 7% of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compile_towers(model: TwoTowers) -> None:
    """Compile both towers in place; names of parameters stay."""
    model.visual.compile()
    model.text.compile()


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)


def _check_compiler(device: torch.device) -> None:
    """Compile a small function, a new one each time: torch's cache would hide that the compiler is gone."""
    number = time.time_ns() % 1_000_003

    def new(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + number

    try:
        torch.compile(new, dynamic=False)(torch.ones(2, device=device))
    except Exception as exc:  # of many kinds, by compiler and version
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "Triton and a C compiler such as gcc"
        reason = next((line for line in str(exc).splitlines() if line.strip()), first_line(exc))
        msg = (
            f"optim.compile needs {needed}, which torch cannot use here ({reason}); install it, or set compile = false"
        )
        raise TrainingError(msg) from exc
    finally:
        torch.compiler.reset()
