"""S2V: a speaker from a picture, sound and poses, clip after clip (`wan/modules/s2v/model_s2v.py` of Wan 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ...variants import PATCH, TIME_STRIDE
from ..cost import clip_tokens
from ..layers import Piece, SelfAttention, by_pieces
from ..runtime import Runtime
from ..sequence import Draft, Stream, to_tokens
from .base import Part, check_same_size
from .motion import LATENT_FRAMES, SMALLEST, FramePacker, motion_length, motion_tokens
from .reference import check_reference
from .s2v_audio import AudioEncoder
from .sound import check_heard, frame_attention, sound_attention

INJECTED = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)  # blocks that sound follows in the 14B model
SOUND_BEFORE = 73  # video frames, those of the clip before: silence of the encoder in front of the clip
REFERENCE_FRAME = 30  # rotary position of the reference picture
CLIP, REFERENCE, MOTION = range(3)  # rows of the table that tells kinds of tokens apart
NORM_EPS = 1e-5


class AdaNorm(nn.Module):
    """Holds the layer that makes shift and scale of a norm from the global sound of a frame (`AdaLayerNorm`)."""

    def __init__(self, dim, ops, **factory):
        super().__init__()
        self.linear = ops.Linear(dim, 2 * dim, **factory)

    def forward(self, sound: Tensor) -> tuple[Tensor, ...]:
        """sound (B, F, dim) -> shift and scale (B, F, 1, dim)."""
        return self.linear(silu(sound)).unsqueeze(2).chunk(2, dim=-1)


class AudioInjector(nn.Module):
    """For each of some blocks, attention of the clip's tokens to the sound of their frame (`AudioInjector_WAN`)."""

    def __init__(self, count, config, ops, **factory):
        super().__init__()
        dim, heads = config.dim, config.heads
        self.injector = nn.ModuleList(SelfAttention(dim, heads, config.eps, ops, **factory) for _ in range(count))
        self.injector_adain_layers = nn.ModuleList(AdaNorm(dim, ops, **factory) for _ in range(count))

    def forward(self, number: int, x: Tensor, tokens: Tensor, overall: Tensor, runtime: Runtime) -> Tensor:
        """Return the clip's tokens x (B, F * n, dim) after layer `number`.

        tokens (B, F, m, dim) and overall (B, F, dim): the sound of each frame.
        """
        layer, attention = self.injector[number], sound_attention(runtime)
        shift, scale = self.injector_adain_layers[number](overall)
        k, v = layer.norm_k(layer.k(tokens)), layer.v(tokens)

        def add(piece: Piece, frames: Piece) -> tuple[Tensor, ...]:
            normed = runtime.kernels.norm_modulate(x[piece], shift[frames], scale[frames], NORM_EPS)
            q = layer.norm_q(layer.q(normed))
            return (x[piece] + layer.o(frame_attention(q, k[frames], v[frames], attention, layer.heads)),)

        return by_pieces(add, x, k, runtime.chunk)[0]


@dataclass(frozen=True)
class SoundToVideo(Part):
    """S2V: sound after some blocks, poses added to the clip, and reference and motion tokens after it.

    blocks: indices of those that sound follows. layers, channels: of the sound. tokens: of it in a frame, without the
    padding. pose_channels, motion_channels: of these latents.
    """

    name = "s2v"
    mark = "casual_audio_encoder.encoder.final_linear.weight"
    conditions = ("audio", "ref_latent", "motion_latents", "pose_latents")

    blocks: tuple[int, ...] = INJECTED
    layers: int = 25
    channels: int = 1024
    tokens: int = 4
    pose_channels: int = 16
    motion_channels: int = 16

    @classmethod
    def read(cls, sizes, layers):
        encoder = "casual_audio_encoder.encoder"
        return cls(
            blocks=_injected(sizes.count("audio_injector.injector."), layers),
            layers=sizes.size("casual_audio_encoder.weights", 1),
            channels=sizes.size(f"{encoder}.conv1_local.conv.weight", 1),
            tokens=sizes.size(f"{encoder}.conv1_local.conv.bias", 0)
            // sizes.size(f"{encoder}.conv1_global.conv.bias", 0),
            pose_channels=sizes.size("cond_encoder.weight", 1),
            motion_channels=sizes.size("frame_packer.proj.weight", 1),
        )

    def build(self, network, config, ops, **factory):
        network.cond_encoder = ops.Conv3d(self.pose_channels, config.dim, kernel_size=PATCH, stride=PATCH, **factory)
        network.casual_audio_encoder = AudioEncoder(self.layers, self.channels, self.tokens, config.dim, ops, **factory)
        network.audio_injector = AudioInjector(len(self.blocks), config, ops, **factory)
        network.trainable_cond_mask = ops.Embedding(3, config.dim, **factory)
        network.frame_packer = FramePacker(self.motion_channels, config.dim, ops, **factory)

    def check(self, config, given, x):
        audio, pose, motion = (given.get(name) for name in ("audio", "pose_latents", "motion_latents"))
        check_heard(config.variant, audio)
        wanted = (x.shape[0], self.layers, self.channels, TIME_STRIDE * x.shape[2])
        if tuple(audio.shape) != wanted:
            raise ValueError(
                f"The sound is {tuple(audio.shape)} (batch, layers, channels, video frames), this latent of "
                f"{x.shape[2]} frames needs {wanted}: make sound and latent with the same length."
            )
        if "ref_latent" in given:
            check_reference(config, given["ref_latent"], config.out_dim)
        if pose is not None:
            check_same_size("The pose video", pose, x)
        if motion is not None:
            self._check_motion(motion, x)

    def _check_motion(self, motion: Tensor, x: Tensor) -> None:
        sides = tuple(x.shape[3:])
        if motion.ndim != 5 or motion.shape[1] != self.motion_channels or tuple(motion.shape[3:]) != sides:
            raise ValueError(
                f"The motion latents are {tuple(motion.shape)}, this latent needs (batch, {self.motion_channels}, "
                f"{LATENT_FRAMES}, {sides[0]}, {sides[1]}): give the last frames of a clip of the same size."
            )
        if min(sides) < SMALLEST:
            raise ValueError(
                f"A clip that goes on from another needs latents of {SMALLEST} x {SMALLEST} at least, this one is "
                f"{sides[0]} x {sides[1]}: choose a larger size."
            )

    def prepare(self, network, draft):
        """Add poses to the clip, put reference and motion tokens behind it, and have sound follow some blocks.

        audio (B, layers, channels, 4 * F); ref_latent (B, C, 1, H, W); motion_latents (B, C, 19, H, W), None for a
        first clip; pose_latents (B, C, F, H, W), None for no pose, which is the encoder's answer to zeros.
        """
        given = draft.given
        kinds = network.trainable_cond_mask(torch.arange(3, device=draft.x.device)).to(draft.clip)  # (3, dim)
        pose = given.get("pose_latents")
        if pose is None:
            pose = draft.x.new_zeros(1, self.pose_channels, *PATCH)
        posed = network.cond_encoder(network.pad_to_patch(pose.to(draft.x)))  # (B or 1, dim, F or 1, h or 1, w or 1)
        draft.clip = draft.clip + posed + kinds[CLIP].view(1, -1, 1, 1, 1)
        if "ref_latent" in given:
            embedded = network.patch_embedding(network.pad_to_patch(given["ref_latent"].to(draft.x)))
            place = draft.place(tuple(embedded.shape[2:]), REFERENCE_FRAME)
            draft.behind.append(Stream(to_tokens(embedded) + kinds[REFERENCE], (place,), time=0.0))
        if "motion_latents" in given:
            latents = network.pad_to_patch(given["motion_latents"].to(draft.x))
            tokens, places = motion_tokens(network.frame_packer, latents, draft)
            draft.behind.append(Stream(tokens + kinds[MOTION], places, time=0.0))
        self._have_sound_follow(network, draft)

    def _have_sound_follow(self, network, draft: Draft) -> None:
        audio, frames = draft.given["audio"].to(draft.x), draft.grid[0]
        tokens, overall = (heard[:, -frames:] for heard in network.casual_audio_encoder(audio, SOUND_BEFORE))
        numbers, runtime = {block: number for number, block in enumerate(self.blocks)}, draft.runtime

        def after(index: int, x: Tensor) -> Tensor:
            if index not in numbers:
                return x
            place = draft.held.clip
            clip = network.audio_injector(numbers[index], x[:, place], tokens, overall, runtime)
            return torch.cat((x[:, : place.start], clip, x[:, place.stop :]), dim=1)

        draft.after_block.append(after)

    def extra_tokens(self, shape, shapes):
        reference = clip_tokens((1, *shapes["ref_latent"][1:])) if "ref_latent" in shapes else 0
        return reference + (motion_length(*shape[3:]) if "motion_latents" in shapes else 0)

    def extra_bytes(self, config, shape, itemsize, shapes):
        return 3 * shape[0] * shape[2] * (self.tokens + 2) * config.dim * itemsize  # and a block's keys and values


def _injected(count: int, layers: int) -> tuple[int, ...]:
    """Return which of `layers` blocks are followed by the sound of `count` injectors, which no file says.

    Those of the 14B model are known; others are taken to be evenly spread.
    """
    if count == len(INJECTED):
        return INJECTED
    return tuple(round(i * (layers - 1) / max(count - 1, 1)) for i in range(count))
