#!/usr/bin/env python3
"""VGGT and Depth Anything 3 as plain torch modules, of any depth, width, number of views and size.

The modules are written for exporting: no caches, no data-dependent Python, the same constructs that the official models
leave in an ONNX file, and the parameter names of the published checkpoints. They make the fixtures of this repository
(`make_fixtures.py`) and say what the native builder must build. Nothing here needs the official packages.

    python3 tools/backbones.py --list                  # architectures
    python3 tools/backbones.py --params vggt-1b        # every parameter, `name shape`, one a line

Structure, in the notation C = width, T = tokens a view, S = views, hw = patches a view:

VGGT, images [1,S,3,H,W] in 0..1 (normalised inside):
  aggregator.patch_embed   DINOv2: conv 14x14, cls + positions, registers without positions, plain blocks, final norm;
                           only the patch tokens leave it
  aggregator               [camera, 4 registers, patches] a view, one set of camera and register tokens for view 0 and
                           another for the rest; `depth` pairs of a frame block (over T) and a global block (over S T),
                           both with q/k norm and 2-D RoPE; taps are concat(frame, global) of 2 C channels
  camera_head              4 refinements over the S camera tokens of the last tap
  depth_head, point_head   DPT over four taps; the skip of a residual convolution unit is relu(x)

DA3, image [1,S,3,H,W] already normalised:
  backbone.pretrained      DINOv2 without registers; from block `alt_start` on q/k norm and RoPE, every odd block over all
                           views; block alt_start - 1 is preceded by the choice of the reference view, which moves to the
                           front; at alt_start the cls token gives way to a camera token
  head                     DPT with two fusion chains (depth, rays); the skip of a residual unit is x
  cam_dec                  pose from the camera token of the last tap; cam_enc (poses given) is listed but not in the graph

Checkpoints of DA3 carry the prefix `model.` before every name.

Parameters, C = width, h = C / heads, m = mlp ratio; `conv` k x k is [out, in, k, k]; every row has `.weight` and `.bias` unless
it says otherwise:

  a block              norm1 [C], attn.qkv [3C,C], attn.proj [C,C], ls1.gamma [C] (no suffix), norm2 [C], mlp.fc1 [mC,C],
                       mlp.fc2 [C,mC], ls2.gamma [C] (no suffix); with q/k norm also attn.q_norm [h], attn.k_norm [h]
  DINOv2               cls_token [1,1,C], pos_embed [1,1+g*g,C], patch_embed.proj conv [C,3,14,14], blocks.N, norm [C];
                       VGGT: register_tokens [1,4,C], mask_token [1,C] (unused); DA3: camera_token [1,2,C]
  VGGT aggregator      camera_token [1,2,1,C], register_token [1,2,4,C], frame_blocks.N, global_blocks.N (q/k norm)
  VGGT camera_head     D = 2C: empty_pose_tokens [1,1,9], trunk.N (blocks of D, no q/k norm), token_norm [D], trunk_norm [D],
                       embed_pose [D,9], poseLN_modulation.1 [3D,D], pose_branch.fc1 [D/2,D], pose_branch.fc2 [9,D/2]
  DPT                  norm [2C], projects.L conv [c_L,2C,1,1], resize_layers.0 [c0,c0,4,4], .1 [c1,c1,2,2] (transposed),
                       .3 conv [c3,c3,3,3], scratch.layerK_rn conv [F,c_K,3,3] without bias, scratch.refinenetK: out_conv
                       [F,F,1,1], resConfUnit1 and 2: conv1, conv2 [F,F,3,3] (refinenet4 has no resConfUnit1),
                       scratch.output_conv1 [F/2,F,3,3], scratch.output_conv2.0 [32,F/2,3,3], .2 [channels,32,1,1]
  DA3 rays             scratch.refinenetK_aux as above; scratch.output_conv1_aux.L.0..4 conv [F/2,F,3,3] and [F,F/2,3,3] in
                       turn; scratch.output_conv2_aux.L.0 [32,F/2,3,3], .2 norm [32] (one norm shared by all L), .5 [7,32,1,1];
                       only L = 3 is used
  DA3 cam_dec          D = 2C: backbone.0, backbone.2 [D,D], fc_t [3,D], fc_qvec [4,D], fc_fov.0 [2,D]
  DA3 cam_enc          pose_branch.fc1 [C/2,9], pose_branch.fc2 [C,C/2], token_norm [C], trunk.N (blocks of C), trunk_norm [C]

Facts: Wang et al., "VGGT: Visual Geometry Grounded Transformer", 2025; Lin et al., "Depth Anything 3", 2025; Ranftl et al.,
"Vision Transformers for Dense Prediction", 2021; and the shapes stored in the published checkpoints.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 14
ROPE_BASE = 100.0
MAX_POSITION = 64  # rows of the rotation tables: enough for images of 882 pixels


@dataclass(frozen=True)
class Vggt:
    """Sizes of a VGGT model. `grid` is the side of the learned position grid, `taps` the pairs that the DPT heads read."""

    dim: int = 1024
    heads: int = 16
    dino_depth: int = 24
    depth: int = 24
    grid: int = 37
    registers: int = 4
    mlp_ratio: float = 4.0
    taps: tuple[int, ...] = (4, 11, 17, 23)
    camera_depth: int = 4
    camera_heads: int = 16
    camera_mlp_ratio: float = 4.0
    features: int = 256
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    points: bool = True


@dataclass(frozen=True)
class Da3:
    """Sizes of a Depth Anything 3 model. `alt_start` begins q/k norm, RoPE and the global blocks (the odd ones)."""

    dim: int = 1024
    heads: int = 16
    depth: int = 24
    grid: int = 37
    alt_start: int = 8
    mlp_ratio: float = 4.0
    taps: tuple[int, ...] = (11, 15, 19, 23)
    features: int = 256
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    pose_encoder: bool = False


def _da3(dim: int, heads: int, features: int) -> Da3:
    channels = (dim // 8, dim // 4, dim // 2, dim)
    return Da3(dim, heads, 12, alt_start=4, taps=(5, 7, 9, 11), features=features, channels=channels, pose_encoder=True)


ARCHITECTURES: dict[str, Vggt | Da3] = {
    "vggt-1b": Vggt(),
    "da3-small": _da3(384, 6, 64),
    "da3-base": _da3(768, 12, 128),
    "da3-large": Da3(pose_encoder=True),
    "tiny_vggt_a": Vggt(
        64,
        2,
        1,
        4,
        6,
        taps=(0, 1, 2, 3),
        camera_depth=1,
        camera_heads=4,
        camera_mlp_ratio=2,
        features=16,
        channels=(16, 32, 32, 32),
    ),
    "tiny_da3_b": Da3(64, 2, 6, 5, 2, taps=(2, 3, 4, 5), features=16, channels=(16, 32, 32, 32)),
}


# Blocks


class Attention(nn.Module):
    """Multi-head self-attention: optional q/k LayerNorm per head, then 2-D RoPE, then the scaled product."""

    def __init__(self, dim: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        b, n, c = x.shape
        parts = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if positions is not None:
            q, k = rope(q, positions), rope(k, positions)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(self, dim: int, heads: int, ratio: float = 4.0, eps: float = 1e-5, qk_norm: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * ratio), dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), positions))
        return x + self.ls2(self.mlp(self.norm2(x)))


# Positions


def rope(x: Tensor, positions: Tensor, base: float = ROPE_BASE, rows: int = MAX_POSITION) -> Tensor:
    """2-D rotary embedding: the first half of a head turns with the row, the second with the column.

    `x` is [B, heads, N, D], `positions` int64 [B, N, 2] below `rows`. In each half channel j pairs with channel j + D/4 and
    turns by p * base^(-4j/D) (Su et al., "RoFormer"; Heo et al., "Rotary Position Embedding for Vision Transformer").
    """
    half = x.shape[-1] // 2
    steps = torch.arange(0, half, 2, device=x.device).float() / half
    turns = torch.einsum("i,j->ij", torch.arange(rows, device=x.device).float(), 1.0 / (base**steps))
    turns = torch.cat([turns, turns], dim=-1).to(x.dtype)
    cos, sin = turns.cos(), turns.sin()
    turned = []
    for axis, t in enumerate(x.chunk(2, dim=-1)):
        c = F.embedding(positions[:, :, axis], cos)[:, None]
        s = F.embedding(positions[:, :, axis], sin)[:, None]
        low, high = t[..., : half // 2], t[..., half // 2 :]
        turned.append(t * c + torch.cat([-high, low], dim=-1) * s)
    return torch.cat(turned, dim=-1)


def patch_positions(rows: int, cols: int, special: int, device: torch.device) -> Tensor:
    """int64 [special + rows*cols, 2]: (0, 0) for special tokens, (row + 1, column + 1) for patches."""
    r = torch.arange(1, rows + 1, device=device)[:, None].expand(rows, cols)
    c = torch.arange(1, cols + 1, device=device)[None, :].expand(rows, cols)
    patches = torch.stack([r.reshape(-1), c.reshape(-1)], dim=-1)
    return torch.cat([torch.zeros(special, 2, dtype=patches.dtype, device=device), patches])


def plane_embedding(channels: int, rows: int, cols: int, aspect: float, double: bool, device: torch.device) -> Tensor:
    """Fixed sine-cosine image of the view plane [channels, rows, cols]; the corners lie on the unit circle.

    Channel quarters are sin x, cos x, sin y, cos y over frequencies 100^(-4k/channels). `double` computes the product in
    float64, as VGGT does.
    """
    norm = math.sqrt(aspect * aspect + 1.0)
    xs = torch.linspace(-1.0, 1.0, cols, device=device) * (aspect / norm * (cols - 1) / cols)
    ys = torch.linspace(-1.0, 1.0, rows, device=device) * (1.0 / norm * (rows - 1) / rows)
    dtype = torch.float64 if double else torch.float32
    omega = torch.tensor([100.0 ** (-4 * k / channels) for k in range(channels // 4)], dtype=dtype, device=device)
    parts = []
    for axis in (xs[None, :].expand(rows, cols), ys[:, None].expand(rows, cols)):
        angle = torch.einsum("m,d->md", axis.reshape(-1).to(dtype), omega)
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float().reshape(rows, cols, channels).permute(2, 0, 1)


# Convolutional heads


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with ReLU before each; the skip is relu(x) where `relu_skip`, else x."""

    def __init__(self, features: int, relu_skip: bool):
        super().__init__()
        self.relu_skip = relu_skip
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        return self.conv2(F.relu(self.conv1(active))) + (active if self.relu_skip else x)


class Fusion(nn.Module):
    """Joins a coarser map with a lateral one, then doubles (or resizes to) the lateral resolution."""

    def __init__(self, features: int, relu_skip: bool, lateral: bool):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if lateral:
            self.resConfUnit1 = ResidualUnit(features, relu_skip)
        self.resConfUnit2 = ResidualUnit(features, relu_skip)

    def forward(self, x: Tensor, lateral: Tensor | None, size: tuple[int, int]) -> Tensor:
        if lateral is not None:
            x = x + self.resConfUnit1(lateral)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


def _norm_channels(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Dpt(nn.Module):
    """Dense prediction from four token taps [S, hw, 2C] (Ranftl et al., "Vision Transformers for Dense Prediction").

    Returns logits [S, H, W, outputs] and, with `rays`, a second set [S, 8 rows, 8 cols, 7].
    """

    def __init__(
        self, inputs: int, outputs: int, features: int, channels: tuple[int, ...], *, vggt: bool, rays: bool = False
    ):
        super().__init__()
        c, half = channels, features // 2
        self.double = vggt
        self.rays = rays
        self.norm = nn.LayerNorm(inputs)
        self.projects = nn.ModuleList(nn.Conv2d(inputs, width, 1) for width in c)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c[0], c[0], 4, stride=4),
                nn.ConvTranspose2d(c[1], c[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c[3], c[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = scratch = nn.Module()
        for level, width in enumerate(c, start=1):
            scratch.add_module(f"layer{level}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
        for suffix in ("", "_aux") if rays else ("",):
            for level in range(1, 5):
                scratch.add_module(f"refinenet{level}{suffix}", Fusion(features, vggt, lateral=level < 4))
        scratch.output_conv1 = nn.Conv2d(features, half, 3, padding=1)
        scratch.output_conv2 = nn.Sequential(nn.Conv2d(half, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))
        if rays:
            widths = [features, half, features, half, features, half]
            convs = [[nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, widths[1:])] for _ in range(4)]
            scratch.output_conv1_aux = nn.ModuleList(nn.Sequential(*level) for level in convs)
            norm = nn.LayerNorm(32)
            scratch.output_conv2_aux = nn.ModuleList(
                nn.ModuleDict({"0": nn.Conv2d(half, 32, 3, padding=1), "2": norm, "5": nn.Conv2d(32, 7, 1)})
                for _ in range(4)
            )

    def forward(self, taps: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor | None]:
        rows, cols = height // PATCH, width // PATCH
        aspect = width / height
        laterals = []
        for level, tap in enumerate(taps):
            x = self.norm(tap)
            x = x.permute(0, 2, 1).reshape(x.shape[0], x.shape[-1], rows, cols)
            x = self._with_plane(self.projects[level](x), aspect)
            x = self.resize_layers[level](x)
            laterals.append(self.scratch.get_submodule(f"layer{level + 1}_rn")(x))

        x = self.scratch.output_conv1(self._fuse(laterals, ""))
        x = F.interpolate(x, size=(rows * PATCH, cols * PATCH), mode="bilinear", align_corners=True)
        dense = self.scratch.output_conv2(self._with_plane(x, aspect)).permute(0, 2, 3, 1)
        if not self.rays:
            return dense, None
        x = self.scratch.output_conv1_aux[3](self._fuse(laterals, "_aux"))
        last = self.scratch.output_conv2_aux[3]
        x = F.relu(_norm_channels(last["2"], last["0"](self._with_plane(x, aspect))))
        return dense, last["5"](x).permute(0, 2, 3, 1)

    def _fuse(self, laterals: list[Tensor], suffix: str) -> Tensor:
        x, lateral = laterals[3], None
        for level in (4, 3, 2, 1):
            if level < 4:
                lateral = laterals[level - 1]
            rows, cols = laterals[max(level - 2, 0)].shape[-2:]
            size = (rows, cols) if level > 1 else (2 * rows, 2 * cols)
            x = self.scratch.get_submodule(f"refinenet{level}{suffix}")(x, lateral, size)
        return x

    def _with_plane(self, x: Tensor, aspect: float) -> Tensor:
        plane = 0.1 * plane_embedding(x.shape[1], x.shape[2], x.shape[3], aspect, self.double, x.device)
        return x + plane.to(x.dtype)[None]


# VGGT


class PatchEmbed(nn.Module):
    """The 14x14 convolution: images [B,3,H,W] to tokens [B, hw, C]."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Dino(nn.Module):
    """DINOv2 as VGGT uses it: positions resized with an antialiased bicubic filter, registers, patch tokens out."""

    def __init__(self, cfg: Vggt):
        super().__init__()
        self.grid = cfg.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + cfg.grid**2, cfg.dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, cfg.registers, cfg.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, cfg.dim))
        self.patch_embed = PatchEmbed(cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg.dim, cfg.heads, cfg.mlp_ratio, eps=1e-6) for _ in range(cfg.dino_depth))
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        b, rows, cols = images.shape[0], images.shape[2] // PATCH, images.shape[3] // PATCH
        x = torch.cat([self.cls_token.expand(b, -1, -1), self.patch_embed(images)], dim=1)
        x = x + self._positions(rows, cols)
        registers = self.register_tokens.expand(b, -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + registers.shape[1] :]

    def _positions(self, rows: int, cols: int) -> Tensor:
        if rows == self.grid and cols == self.grid:
            return self.pos_embed
        return resized_positions(self.pos_embed, self.grid, size=(rows, cols), antialias=True)


def resized_positions(table: Tensor, grid: int, **how) -> Tensor:
    """The learned grid [1, 1 + grid*grid, C] resampled by a bicubic filter; the cls row is kept as it is."""
    square = table[:, 1:].float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, mode="bicubic", align_corners=False, **how)
    patches = resized.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :1], patches], dim=1)


class Aggregator(nn.Module):
    """Alternating frame and global blocks; returns the taps [B, S, T, 2C]."""

    def __init__(self, cfg: Vggt):
        super().__init__()
        self.cfg = cfg
        self.patch_embed = Dino(cfg)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, cfg.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, cfg.registers, cfg.dim))
        block = dict(dim=cfg.dim, heads=cfg.heads, ratio=cfg.mlp_ratio, qk_norm=True)
        self.frame_blocks = nn.ModuleList(Block(**block) for _ in range(cfg.depth))
        self.global_blocks = nn.ModuleList(Block(**block) for _ in range(cfg.depth))
        for name, values in (("_resnet_mean", (0.485, 0.456, 0.406)), ("_resnet_std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).reshape(1, 1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        b, s, _, height, width = images.shape
        images = (images - self._resnet_mean) / self._resnet_std
        patches = self.patch_embed(images.reshape(b * s, 3, height, width))
        special = [per_view_tokens(token, b, s) for token in (self.camera_token, self.register_token)]
        x = torch.cat([*special, patches], dim=1)
        t, c = x.shape[1:]
        grid = patch_positions(height // PATCH, width // PATCH, 1 + self.cfg.registers, x.device)
        taps = {}
        for i, (frame, everywhere) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            x = frame(x.reshape(b * s, t, c), grid.expand(b * s, t, 2))
            local = x
            x = everywhere(x.reshape(b, s * t, c), grid.expand(b, s, t, 2).reshape(b, s * t, 2))
            if i in self.cfg.taps:
                taps[i] = torch.cat([local.reshape(b, s, t, c), x.reshape(b, s, t, c)], dim=-1)
        return [taps[i] for i in self.cfg.taps]


def per_view_tokens(token: Tensor, b: int, s: int) -> Tensor:
    """[1, 2, n, C] to [B S, n, C]: version 0 for the first view, version 1 for the others."""
    first = token[:, :1].expand(b, 1, -1, -1)
    rest = token[:, 1:].expand(b, s - 1, -1, -1)
    return torch.cat([first, rest], dim=1).flatten(0, 1)


class CameraHead(nn.Module):
    """Refines [translation, quaternion xyzw, vertical and horizontal field of view] of every view four times."""

    def __init__(self, cfg: Vggt):
        super().__init__()
        dim = 2 * cfg.dim
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.trunk = nn.ModuleList(Block(dim, cfg.camera_heads, cfg.camera_mlp_ratio) for _ in range(cfg.camera_depth))
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, 9)
        self.bare_norm = nn.LayerNorm(dim, elementwise_affine=False)

    def forward(self, tokens: Tensor, refinements: int = 4) -> Tensor:
        tokens = self.token_norm(tokens)
        pose = None
        for _ in range(refinements):
            given = self.empty_pose_tokens.expand(tokens.shape[0], tokens.shape[1], -1) if pose is None else pose
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(given)).chunk(3, dim=-1)
            x = tokens + gate * (self.bare_norm(tokens) * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x)
            change = self.pose_branch(self.trunk_norm(x))
            pose = change if pose is None else pose + change
        return torch.cat([pose[..., :7], F.relu(pose[..., 7:])], dim=-1)


class VggtModel(nn.Module):
    """Outputs pose_enc [1,S,9], depth [1,S,H,W,1], depth_conf [1,S,H,W], and world_points [1,S,H,W,3] with confidence."""

    def __init__(self, cfg: Vggt):
        super().__init__()
        self.cfg = cfg
        self.aggregator = Aggregator(cfg)
        self.camera_head = CameraHead(cfg)
        heads = dict(inputs=2 * cfg.dim, features=cfg.features, channels=cfg.channels, vggt=True)
        self.depth_head = Dpt(outputs=2, **heads)
        self.point_head = Dpt(outputs=4, **heads) if cfg.points else None

    @property
    def outputs(self) -> list[str]:
        return ["pose_enc", "depth", "depth_conf"] + ["world_points", "world_points_conf"] * self.cfg.points

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        b, s, _, height, width = images.shape
        taps = self.aggregator(images)
        pose = self.camera_head(taps[-1][:, :, 0])
        first = 1 + self.cfg.registers
        taps = [tap[:, :, first:].flatten(0, 1) for tap in taps]
        depth, _ = self.depth_head(taps, height, width)
        depth = depth.unflatten(0, (b, s))
        results = [pose, depth[..., :1].exp(), 1 + depth[..., 1].exp()]
        if self.point_head is not None:
            points = self.point_head(taps, height, width)[0].unflatten(0, (b, s))
            xyz = points[..., :3]
            # exp(|x|) - 1 rather than expm1, which the TorchScript exporter does not know.
            results += [xyz.sign() * (xyz.abs().exp() - 1), 1 + points[..., 3].exp()]
        return tuple(results)


# Depth Anything 3


class Da3Backbone(nn.Module):
    """DINOv2 that turns into a multi-view transformer at `alt_start`. Returns (patch taps, camera vector of the last)."""

    def __init__(self, cfg: Da3):
        super().__init__()
        self.cfg = cfg
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, cfg.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + cfg.grid**2, cfg.dim))
        self.patch_embed = PatchEmbed(cfg.dim)
        self.blocks = nn.ModuleList(
            Block(cfg.dim, cfg.heads, cfg.mlp_ratio, eps=1e-6, qk_norm=i >= cfg.alt_start) for i in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.dim)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        cfg = self.cfg
        b, s, _, height, width = image.shape
        rows, cols = height // PATCH, width // PATCH
        x = self.patch_embed(image.reshape(b * s, 3, height, width))
        x = torch.cat([self.cls_token.expand(b * s, -1, -1), x], dim=1) + self._positions(rows, cols)
        t, c = x.shape[1:]
        here = patch_positions(rows, cols, 1, x.device)
        anywhere = here.clamp(max=1)
        local, reference, kept = x, None, {}
        for i, block in enumerate(self.blocks):
            if i == cfg.alt_start - 1 and s >= 3:
                reference = balanced_view(x.reshape(b, s, t, c)[:, :, 0])
                x = take_views(x.reshape(b, s, t, c), to_front(reference, s)).reshape(b * s, t, c)
                local = x
            if i == cfg.alt_start:
                x = x.reshape(b, s, t, c).clone()
                x[:, :, 0] = per_view_tokens(self.camera_token[:, :, None], b, s).reshape(b, s, c)
                x = x.reshape(b * s, t, c)
            if i >= cfg.alt_start and i % 2 == 1:
                x = block(x.reshape(b, s * t, c), anywhere.expand(b, s, t, 2).reshape(b, s * t, 2)).reshape(b * s, t, c)
            else:
                x = block(x, here.expand(b * s, t, 2) if i >= cfg.alt_start else None)
                local = x
            if i in cfg.taps:
                tap = torch.cat([local, x], dim=-1).reshape(b, s, t, 2 * c)
                kept[i] = tap if reference is None else take_views(tap, from_front(reference, s))
        camera = kept[cfg.taps[-1]][:, :, 0]
        taps = [torch.cat([kept[i][..., :c], self.norm(kept[i][..., c:])], dim=-1)[:, :, 1:] for i in cfg.taps]
        return taps, camera

    def _positions(self, rows: int, cols: int) -> Tensor:
        side = self.cfg.grid
        if rows == side and cols == side:
            return self.pos_embed
        scale = ((float(rows) + 0.1) / side, (float(cols) + 0.1) / side)
        return resized_positions(self.pos_embed, side, scale_factor=scale, antialias=False)


def balanced_view(cls: Tensor) -> Tensor:
    """The view [B] whose cls token [B, S, C] lies nearest the middle in similarity, length and variance."""
    s = cls.shape[1]
    length = cls.norm(dim=-1)
    unit = cls / cls.norm(dim=-1, keepdim=True)
    similarity = (unit @ unit.transpose(1, 2) - torch.eye(s, device=cls.device, dtype=cls.dtype)).sum(-1) / (s - 1)
    score = torch.zeros_like(length)
    for measure in (similarity, length, unit.var(dim=-1)):
        low, high = measure.amin(dim=1, keepdim=True), measure.amax(dim=1, keepdim=True)
        score = score + ((measure - low) / (high - low + 1e-8) - 0.5).abs()
    return score.argmin(dim=1)


def to_front(reference: Tensor, s: int) -> Tensor:
    """int64 [B, S]: the order that puts `reference` [B] first and keeps the rest."""
    order = torch.arange(s, device=reference.device)[None].expand(reference.shape[0], -1)
    order = torch.where((order > 0) & (order <= reference[:, None]), order - 1, order)
    order = order.clone()
    order[:, 0] = reference
    return order


def from_front(reference: Tensor, s: int) -> Tensor:
    """The inverse of `to_front`."""
    order = torch.arange(s, device=reference.device)[None].expand(reference.shape[0], -1)
    back = torch.where(order < reference[:, None], order + 1, order)
    return back.scatter(1, reference[:, None], torch.zeros_like(reference[:, None]))


def take_views(x: Tensor, order: Tensor) -> Tensor:
    """x [B, S, T, C] with its views in `order` [B, S]."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], order]


class CameraDecoder(nn.Module):
    """[B, S, 2C] to [translation, quaternion xyzw, fields of view], camera to world."""

    def __init__(self, dim: int):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        b, s = x.shape[:2]
        x = self.backbone(x.reshape(b * s, -1))
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], dim=-1).reshape(b, s, 9)


class CameraEncoder(nn.Module):
    """[B, S, 9] given poses to camera tokens [B, S, C]. Its parameters are in every checkpoint."""

    def __init__(self, dim: int):
        super().__init__()
        self.trunk = nn.Sequential(*(Block(dim, 16) for _ in range(4)))
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(9, dim // 2, dim)

    def forward(self, pose: Tensor) -> Tensor:
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(pose))))


def rotation(q: Tensor) -> Tensor:
    """Quaternions xyzw [..., 4] of any length to rotations [..., 3, 3]."""
    x, y, z, w = q.unbind(-1)
    two = 2.0 / (q * q).sum(-1)
    rows = [
        1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w),
        two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w),
        two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


class Da3Model(nn.Module):
    """Outputs depth, depth_conf [1,S,H,W], ray [1,S,8r,8c,6], ray_conf, extrinsics [1,S,3,4] (world to camera), intrinsics."""

    outputs = ["depth", "depth_conf", "ray", "ray_conf", "extrinsics", "intrinsics"]

    def __init__(self, cfg: Da3):
        super().__init__()
        self.cfg = cfg
        self.backbone = nn.Module()
        self.backbone.pretrained = Da3Backbone(cfg)
        self.head = Dpt(2 * cfg.dim, 2, cfg.features, cfg.channels, vggt=False, rays=True)
        self.cam_dec = CameraDecoder(2 * cfg.dim)
        self.cam_enc = CameraEncoder(cfg.dim) if cfg.pose_encoder else None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        b, s, _, height, width = image.shape
        taps, camera = self.backbone.pretrained(image)
        depth, ray = (x.unflatten(0, (b, s)) for x in self.head([tap.flatten(0, 1) for tap in taps], height, width))
        extrinsics, intrinsics = decode_cameras(self.cam_dec(camera), height, width)
        return depth[..., 0].exp(), 1 + depth[..., 1].exp(), ray[..., :6], 1 + ray[..., 6].exp(), extrinsics, intrinsics


def decode_cameras(pose: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Camera-to-world encodings [B,S,9] to world-to-camera [B,S,3,4] and intrinsics [B,S,3,3] in pixels."""
    turned = rotation(pose[..., 3:7]).transpose(-1, -2)
    extrinsics = torch.cat([turned, -(turned @ pose[..., :3, None])], dim=-1)
    k = torch.zeros(*pose.shape[:2], 3, 3, dtype=pose.dtype, device=pose.device)
    k[..., 0, 0] = (width / 2) / torch.tan(pose[..., 8] / 2).clamp(min=1e-6)
    k[..., 1, 1] = (height / 2) / torch.tan(pose[..., 7] / 2).clamp(min=1e-6)
    k[..., 0, 2] = width / 2
    k[..., 1, 2] = height / 2
    k[..., 2, 2] = 1.0
    return extrinsics, k


# Making models


def build(cfg: Vggt | Da3) -> VggtModel | Da3Model:
    return (VggtModel if isinstance(cfg, Vggt) else Da3Model)(cfg).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which every path matters, the same for a given seed and name: LayerScale about 0.5, tokens about 0.5."""
    for name, p in model.named_parameters():
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        x = torch.randn(p.shape, generator=g)
        if name.endswith("gamma"):
            x = 0.5 + 0.1 * x
        elif "token" in name or "pos_embed" in name:
            x = 0.5 * x
        elif p.dim() == 1 and name.endswith("weight"):
            x = 1.0 + 0.2 * x
        elif p.dim() == 1:
            x = 0.1 * x
            if name.endswith(("fc_fov.0.bias", "pose_branch.fc2.bias")):
                x[-2:] += 1.0  # fields of view above zero
        else:
            fan = p.shape[1] if "resize_layers.0" not in name and "resize_layers.1" not in name else p.shape[0]
            x = x / math.sqrt(fan * (p[0, 0].numel() if "resize_layers.0" not in name else 1))
        p.copy_(x.half().float())  # exact in half precision, so that fp16 fixtures carry the same weights
    return model


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--list", action="store_true", help="names and sizes of the known architectures")
    cli.add_argument(
        "--params", metavar="ARCH", choices=ARCHITECTURES, help="every parameter of an architecture: name, shape"
    )
    args = cli.parse_args()
    if not (args.list or args.params):
        cli.error("give --list or --params ARCH")
    with torch.device("meta"):
        models = {name: build(cfg) for name, cfg in ARCHITECTURES.items() if args.list or name == args.params}
    for name, model in models.items():
        if args.list:
            print(f"{name:12} {sum(p.numel() for p in model.parameters()):>13,} parameters")
        else:
            for key, value in model.state_dict().items():
                print(key, ",".join(map(str, value.shape)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
