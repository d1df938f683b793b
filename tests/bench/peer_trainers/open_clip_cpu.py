"""open_clip's trainer on the CPU, and a model for it.

    python open_clip_cpu.py save CONFIG FOLDER      # random weights in open_clip's layout, with its tokenizer
    python open_clip_cpu.py train ARGUMENTS         # open_clip_train.main; a JSON list, because torchrun reads options

Two things keep `open_clip_train` from running here, and are mended before it is imported:

- torchvision's compiled operators need CUDA's libraries. Its transforms, which are all that open_clip takes of it, are
  plain Python; but the import of the package fails unless two of the operators are known by name.
- With several processes it passes `device_ids` to DistributedDataParallel, which refuses them on a CPU.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import parallel

_OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]


class _OnCpu(parallel.DistributedDataParallel):
    def __init__(self, module: torch.nn.Module, device_ids: object = None, **options: Any) -> None:
        super().__init__(module, **options)


parallel.DistributedDataParallel = _OnCpu  # type: ignore[misc, assignment]


def _save(config: Path, folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shape = json.loads(config.read_text())
    weights = open_clip.CLIP(**shape).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    shutil.copyfile(vocabulary, folder / vocabulary.name)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": {}}))


def main() -> None:
    """Save a model, or train."""
    what, *arguments = sys.argv[1:]
    if what == "save":
        config, folder = map(Path, arguments)
        _save(config, folder)
    else:
        from open_clip_train.main import main as train

        train(json.loads(arguments[0]))


if __name__ == "__main__":
    main()
