"""ModifiedResNet image tower (CLIP, section 2.4): ResNet-D, antialiased downsampling, attention pooling."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.families.clip.config import ModifiedResNetConfig

EXPANSION = 4


class Bottleneck(nn.Module):
    """Bottleneck block whose stride is an average pool after the second convolution, not a strided convolution."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        # The residual branch starts at zero, so a new block is the identity.
        nn.init.zeros_(self.bn3.weight)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inplanes != planes * EXPANSION:
            # Names of the public checkpoints: "-1" is the pool, which has no parameters.
            self.downsample = nn.Sequential(
                OrderedDict(
                    {
                        "-1": nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                        "0": nn.Conv2d(inplanes, planes * EXPANSION, 1, bias=False),
                        "1": nn.BatchNorm2d(planes * EXPANSION),
                    }
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, inplanes, h, w]`` to ``[batch, 4 * planes, h / stride, w / stride]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        activated: Tensor = self.relu(out + self.downsample(x))
        return activated


class AttentionPool2d(nn.Module):
    """One attention layer whose query is the mean of the feature map (CLIP, section 2.4)."""

    def __init__(self, side: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) * width**-0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Pool float ``[batch, width, side, side]`` to ``[batch, embed_dim]``."""
        batch, width = x.shape[0], x.shape[1]
        x = x.flatten(2).transpose(1, 2)  # [b, side * side, width]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        out = functional.scaled_dot_product_attention(
            split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
        )  # [b, heads, 1, d]
        pooled: Tensor = self.c_proj(out.transpose(1, 2).reshape(batch, width))
        return pooled


class ModifiedResNet(nn.Module):
    """The paper's convolutional tower."""

    def __init__(self, config: ModifiedResNetConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AvgPool2d(2)
        inplanes = width
        stages = []
        for index, blocks in enumerate(config.layers):
            planes = width * 2**index
            stage = [Bottleneck(inplanes, planes, stride=1 if index == 0 else 2)]
            inplanes = planes * EXPANSION
            stage += [Bottleneck(inplanes, planes, stride=1) for _ in range(1, blocks)]
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool2d(config.image_size // 32, inplanes, config.heads, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels: float ``[batch, 3, size, size]`` to ``[batch, embed_dim]``."""
        x = self.relu(self.bn1(self.conv1(pixels)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu(self.bn3(self.conv3(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = self.attnpool(x)
        return pooled
