"""A second, independent CLIP: parameters named and shaped as in openai/CLIP, attention by torch's own module.

Nothing here is the code under test. Weights are random values that fp16 can represent.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.families.clip.config import ClipConfig
from tests.support.companions import vocabulary

VIT: dict[str, Any] = {
    "embed_dim": 32,
    "image": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "heads": 2},
    "text": {
        "vocab_size": 600,
        "context_length": 32,
        "width": 128,
        "layers": 2,
        "heads": 2,
        "end_of_text_id": 599,
    },
}
RESNET: dict[str, Any] = {
    **VIT,
    "image": {"kind": "modified_resnet", "image_size": 64, "layers": [1, 2, 1, 1], "width": 8},
}
TOWERS = {"vit": VIT, "modified_resnet": RESNET}


class QuickGelu(nn.Module):
    """``x * sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        return x * torch.sigmoid(x * 1.702)


class Block(nn.Module):
    """One block of a transformer; sequence first, as in openai/CLIP."""

    def __init__(self, width: int, heads: int, act: nn.Module, mlp_width: int | None) -> None:
        super().__init__()
        inner = mlp_width or 4 * width
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, inner), act=act, c_proj=nn.Linear(inner, width)),
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map ``[length, batch, width]`` to the same."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """The blocks of a transformer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        acts = {"quick_gelu": QuickGelu, "gelu": nn.GELU}
        self.resblocks = nn.ModuleList(
            Block(config.width, config.heads, acts[config.activation](), config.mlp_width) for _ in range(config.layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``[batch, length, width]`` to the same."""
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Vit(nn.Module):
    """The image tower of a ViT-B/32 and its like."""

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__()
        places = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(config.width) * 0.1)
        self.positional_embedding = nn.Parameter(torch.randn(places, config.width) * 0.1)
        self.proj = nn.Parameter(torch.randn(config.width, embed_dim) * 0.1)
        self.conv1 = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``[batch, 3, size, size]``."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_embedding.expand(len(patches), 1, -1), patches), dim=1)
        x = self.transformer(self.ln_pre(tokens + self.positional_embedding))
        out: Tensor = self.ln_post(x)[:, 0] @ self.proj
        return out


class Bottleneck(nn.Module):
    """One residual block of the ResNet."""

    def __init__(self, before: int, inside: int, stride: int) -> None:
        super().__init__()
        after = 4 * inside
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(before, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after)
        if stride > 1 or before != after:
            layers = OrderedDict({"0": nn.Conv2d(before, after, 1, bias=False), "1": nn.BatchNorm2d(after)})
            self.downsample = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, before, h, w]`` to ``[batch, 4 * inside, h / stride, w / stride]``."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = functional.avg_pool2d(torch.relu(self.bn2(self.conv2(y))), self.stride)
        y = self.bn3(self.conv3(y))
        if hasattr(self, "downsample"):
            x = self.downsample(functional.avg_pool2d(x, self.stride))
        return torch.relu(x + y)


class AttentionPool(nn.Module):
    """Attention pooling: the mean attends to the map, by torch's function with three projections."""

    def __init__(self, side: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) * 0.1)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``[batch, width, side, side]`` to ``[batch, embed_dim]``."""
        places = x.flatten(2).permute(2, 0, 1)
        places = torch.cat((places.mean(0, keepdim=True), places)) + self.positional_embedding[:, None]
        pooled, _ = functional.multi_head_attention_forward(
            places[:1],
            places,
            places,
            embed_dim_to_check=places.shape[2],
            num_heads=self.heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat((self.q_proj.bias, self.k_proj.bias, self.v_proj.bias)),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return pooled[0]


class ResNet(nn.Module):
    """The image tower of an RN50 and its like."""

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(n) for n in (width // 2, width // 2, width))
        before = width
        for stage, count in enumerate(config.layers):
            inside = width << stage
            blocks = [
                Bottleneck(4 * inside if i else before, inside, 2 if stage and not i else 1) for i in range(count)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            before = 4 * inside
        self.attnpool = AttentionPool(config.image_size // 32, before, width * 32 // 64, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``[batch, 3, size, size]``."""
        x = pixels
        for i in (1, 2, 3):
            x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        x = functional.avg_pool2d(x, 2)
        for i in (1, 2, 3, 4):
            x = getattr(self, f"layer{i}")(x)
        out: Tensor = self.attnpool(x)
        return out


class ReferenceClip(nn.Module):
    """Both towers; the text tower's parameters are at the root, as in openai/CLIP."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        text = config.text
        self.end_of_text_id = text.end_of_text_id
        self.positional_embedding = nn.Parameter(torch.randn(text.context_length, text.width) * 0.1)
        self.text_projection = nn.Parameter(torch.randn(text.width, config.embed_dim) * 0.1)
        self.logit_scale = nn.Parameter(torch.tensor(2.75))
        self.visual: nn.Module = (Vit if config.image.kind == "vit" else ResNet)(config.image, config.embed_dim)
        self.transformer = Transformer(text)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.ln_final = nn.LayerNorm(text.width)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode ``[batch, length]``; take the feature at the highest id, as in openai/CLIP."""
        length = ids.shape[1]
        mask = torch.ones(length, length).triu(1).bool()
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        out: Tensor = x[torch.arange(len(x)), ids.argmax(1)] @ self.text_projection
        return out

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pictures and texts."""
        return self.visual(pixels), self.encode_text(ids)


def reference(tower: str = "vit", activation: str = "quick_gelu") -> tuple[ClipConfig, ReferenceClip]:
    """Build one of the `TOWERS` with weights that look trained; the same arguments give the same weights."""
    fields = TOWERS[tower]
    image = fields["image"] if tower != "vit" else {**fields["image"], "activation": activation}
    config = ClipConfig.model_validate({**fields, "image": image, "text": {**fields["text"], "activation": activation}})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = ReferenceClip(config)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_bias, std=0.1)
    return config, model.half().float().eval().requires_grad_(requires_grad=False)


def write_vocabulary(path: Path) -> Path:
    """Write a file in the format of the reference tokenizer's, with merges for the 600 tokens of the `TOWERS`."""
    path.write_bytes(vocabulary())
    return path
