"""Qwen3 in plain PyTorch, for training on packed documents. Names and numbers are those of Transformers.

Source of the architecture: Transformers' `Qwen3ForCausalLM`; a test compares the two.
"""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model, by the names of its config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self) -> dict[str, object]:
        """Return config.json, but for the token ids."""
        sizes = asdict(self)
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **sizes,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
            "dtype": "bfloat16",
        }


class Norm(nn.Module):  # type: ignore[misc]
    """Root mean square norm."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * self.weight).to(x.dtype)


class Attention(nn.Module):  # type: ignore[misc]
    """Attention over the documents of a batch, each on its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.groups, self.size = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.groups * self.size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.groups * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, shape.hidden_size, bias=False)
        self.q_norm = Norm(self.size, shape.rms_norm_eps)
        self.k_norm = Norm(self.size, shape.rms_norm_eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], starts: Tensor, longest: int) -> Tensor:
        tokens = x.shape[0]
        q = rotate(self.q_norm(self.q_proj(x).view(tokens, self.heads, self.size)), turn)
        k = rotate(self.k_norm(self.k_proj(x).view(tokens, self.groups, self.size)), turn)
        v = self.v_proj(x).view(tokens, self.groups, self.size)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        return self.o_proj(attend(q, k.to(q.dtype), v.to(q.dtype), starts, longest).reshape(tokens, -1))


class Layer(nn.Module):  # type: ignore[misc]
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False),
                "up_proj": nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False),
                "down_proj": nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False),
            }
        )

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], starts: Tensor, longest: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, starts, longest)
        y = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))


class ChatModel(nn.Module):  # type: ignore[misc]
    """The whole model: token ids of a packed batch in, logits out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(shape.vocab_size, shape.hidden_size),
                "layers": nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers)),
                "norm": Norm(shape.hidden_size, shape.rms_norm_eps),
            }
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights. What adds to the residual stream starts at zero, so that training starts smoothly."""
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.dim() == 2:
                deviation = 0.05 if "embed" in name else 1 / math.sqrt(weight.shape[1])
                weight.normal_(0.0, deviation, generator=generator)

    def forward(self, tokens: Tensor, positions: Tensor, starts: Tensor, longest: int) -> Tensor:
        """Return logits, (tokens, vocabulary), for documents that start at `starts` and are at most `longest` long."""
        table = self.model["embed_tokens"].weight
        x = F.embedding(tokens, table)
        turn = turning(positions, self.shape.head_dim, self.shape.rope_theta)
        for layer in self.model["layers"]:
            x = layer(x, turn, starts, longest)
        return F.linear(self.model["norm"](x), table)


def turning(positions: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary embedding at these positions, (tokens, 1, size)."""
    frequencies = theta ** (-torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size)
    angles = torch.cat([positions.float()[:, None] * frequencies] * 2, -1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys to their positions."""
    first, second = x.chunk(2, -1)
    cosine, sine = turn
    return (x * cosine + torch.cat([-second, first], -1) * sine).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    """Attend causally within each document. Shapes: (tokens, heads, size)."""
    if q.is_cuda:
        out = varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(-1, 0))
        if not isinstance(out, Tensor):
            raise TypeError("varlen_attn gave more than was asked for")
        return out
    bounds = sorted(set(starts.tolist()))
    parts = []
    for low, high in pairwise(bounds):
        one, other, third = (t[low:high].transpose(0, 1)[None] for t in (q, k, v))
        parts.append(F.scaled_dot_product_attention(one, other, third, is_causal=True)[0].transpose(0, 1))
    return torch.cat(parts)
