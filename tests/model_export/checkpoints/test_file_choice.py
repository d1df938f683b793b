"""Which of a repository's files are chosen, by their names alone."""

import pytest

from model_export.checkpoints.file_choice import choose_onnx, companions, loose_weights, weight_forms
from model_export.errors import IncompleteError

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
LAST = "model-00002-of-00002.safetensors"
OURS, THEIRS = "config.json", "open_clip_config.json"


@pytest.mark.parametrize(
    ("names", "forms"),
    [
        (f"{OURS} pytorch_model.bin model.safetensors", ["model.safetensors"]),
        (
            f"{OURS} model.safetensors {THEIRS} open_clip_model.safetensors",
            ["model.safetensors", "open_clip_model.safetensors"],
        ),
        (
            f"{OURS} pytorch_model.bin {THEIRS} open_clip.safetensors",
            ["open_clip.safetensors", "pytorch_model.bin"],
        ),
        (f"{THEIRS} open_clip_pytorch_model.bin model.safetensors", ["open_clip_pytorch_model.bin"]),
        (f"{THEIRS} epoch_3.pt optimizer.pt", ["epoch_3.pt"]),
        (f"{THEIRS} a.pt b.pt", []),
        (f"{OURS} pytorch_model.bin {INDEX} {SHARD} {LAST}", [f"{INDEX} {SHARD} {LAST}"]),
        (f"{OURS} pytorch_model.bin {INDEX} {SHARD}", ["pytorch_model.bin"]),  # a shard is missing
        (f"{OURS} {INDEX} {SHARD}", [f"{INDEX} {SHARD}"]),
        ("pytorch_model.bin model.safetensors", []),
        (f"{OURS} model.fp16.safetensors ViT-B-32.pt", []),
        (f"{OURS} tf_model.h5 adapter_model.safetensors", []),
    ],
)
def test_forms_of_weights_are_found_beside_their_configuration(names: str, forms: list[str]) -> None:
    """One form of each layout: safetensors before pickles, Hugging Face's before open_clip's, whole ones first."""
    assert forms == [" ".join(form.files) for form in weight_forms(frozenset(names.split()))]


def test_missing_shards_are_known_by_their_names() -> None:
    """The names count to the number that they state."""
    (form,) = weight_forms({OURS, INDEX, SHARD})
    assert (LAST,) == form.lacking


def test_weights_under_other_names_are_told_from_what_is_none() -> None:
    """Optimizers, adapters, folders' contents and graphs are no weights."""
    names = ["RN50.pt", "optimizer.pt", "adapter_model.safetensors", "x/model.safetensors", "model.onnx", "a.bin"]
    assert ("RN50.pt", "a.bin") == loose_weights(names)


def test_companions_come_in_a_fixed_order() -> None:
    """The card first; files that nobody reads are left out."""
    assert ("README.md", OURS, "vocab.json") == companions(["vocab.json", "example.png", OURS, "README.md"])


def test_encoders_in_onnx_come_with_their_data() -> None:
    """Both towers and the full graph of one variant, with external data."""
    graphs = ["onnx/model.onnx", "onnx/text_model.onnx", "onnx/vision_model.onnx", "onnx/vision_model.onnx_data"]
    half = [name.replace(".onnx", "_fp16.onnx") for name in graphs]
    names = {*graphs, *half, "model.safetensors", "onnx/vision_model_q4.onnx"}
    assert tuple(graphs) == choose_onnx(names, "fp32", "x")
    assert tuple(half) == choose_onnx(names, "fp16", "x")
    with pytest.raises(IncompleteError, match=r"^x: has no onnx/text_model_q4\.onnx; it has fp16, fp32, q4$"):
        choose_onnx(names, "q4", "x")
    with pytest.raises(IncompleteError, match=r"has no onnx/vision_model\.onnx and no .*; export from its weights"):
        choose_onnx({"onnx/model.onnx"}, "fp32", "x")
