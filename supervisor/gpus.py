"""Decides which GPUs each slot owns, and how much of each: pure, from what is asked for and what is there.

A GPU belongs to one slot, unless every slot on it asks to share. Indices are NVML's (the order on the PCI bus).
"""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from messages.config import ConfigError

SHARED: Final = 0.8
"""What those who share a GPU get of its memory together, where they do not say: the rest is for what SGLang takes
beside weights and KV cache, for each of them anew (CUDA's context, graphs, activations)."""
MOST: Final = 0.95
FRACTION_MOST: Final = 0.95
WHOLE: Final = 0.8
"""Of a whole GPU that nobody shares, what must be free again before a restart, where the figure before is not known."""
SLACK: Final = 512 << 20


class Card(Struct, frozen=True, kw_only=True):
    """One GPU of this host: `total` in bytes, the CPUs near it (none: nobody says)."""

    index: int
    name: str = ""
    total: int = 0
    cpus: frozenset[int] = frozenset()


class Want(Struct, frozen=True, kw_only=True):
    """What one slot asks for: these GPUs or so many of any, to itself or shared, and a share of their memory.

    `measured` says that its arguments fix the memory in SGLang's own way, so that no share of ours applies.
    """

    slot: str
    gpus: tuple[int, ...] = ()
    count: int = 1
    shares: bool = False
    share: float | None = None
    measured: bool = False


class Given(Struct, frozen=True, kw_only=True):
    """What a slot owns: GPUs, and the share of each one's memory that it may take (None: SGLang's own default)."""

    gpus: tuple[int, ...] = ()
    share: float | None = None


def needed(args: dict[str, Any]) -> int | None:
    """Count the GPUs that arguments of SGLang's take, None where they leave it open. Raises ConfigError."""
    sizes = {}
    for name in ("tp_size", "pp_size", "dp_size"):
        if name in args:
            if not isinstance(args[name], int) or isinstance(args[name], bool) or args[name] < 1:
                raise ConfigError(f"args.{name}: {args[name]!r} is no number of GPUs")
            sizes[name] = args[name]
    if not sizes:
        return None
    ranks = 1 if args.get("enable_dp_attention") else sizes.get("dp_size", 1)
    return int(sizes.get("tp_size", 1) * sizes.get("pp_size", 1) * ranks)


def assign(wants: Iterable[Want], cards: list[Card] | None, visible: frozenset[int] | None = None) -> dict[str, Given]:
    """Give every slot its GPUs. `cards` is what is there (None: nobody knows), `visible` what we may use of it.

    Slots that name theirs come first, then those that want any to themselves, then those that share. Where nobody
    knows what is there, a slot that names none gets none: SGLang then takes the first it finds.
    Raises ConfigError for a GPU that is not there, that two own without sharing, or that is not left.
    """
    wants = list(wants)
    owners: dict[int, list[Want]] = {}
    given: dict[str, tuple[int, ...]] = {}
    for want in sorted(wants, key=lambda want: (not want.gpus, want.shares and not want.gpus)):
        gpus = want.gpus or _any(want, owners, cards, visible)
        _check(want, gpus, owners, cards, visible)
        given[want.slot] = gpus
        for gpu in gpus:
            owners.setdefault(gpu, []).append(want)
    return {
        want.slot: Given(gpus=given[want.slot], share=_share(want, [owners[gpu] for gpu in given[want.slot]]))
        for want in wants
    }


def fraction(share: float, total: int, free: int) -> float:
    """Turn a share of all memory into SGLang's `mem_fraction_static`, which is one of what is free as it loads.

    So a slot that is started again beside its neighbour gets what it had, and not a share of what is left.
    """
    return min(share * total / free, FRACTION_MOST) if free > 0 and total > 0 else share


def wanted(share: float | None, total: int, before: int | None) -> int:
    """Bytes that must be free for a slot to be started again: what it found at its last start, or what it will take."""
    most = round((share if share is not None else WHOLE) * total)
    return max(0, (min(most, before) if share is not None and before is not None else before or most) - SLACK)


def _any(
    want: Want, owners: dict[int, list[Want]], cards: list[Card] | None, visible: frozenset[int] | None
) -> tuple[int, ...]:
    """Choose for a slot that names no GPU: the first free ones, or if it shares those with the fewest on them."""
    if cards is None:
        return ()
    there = [card.index for card in cards if visible is None or card.index in visible]
    if want.shares:
        open_ = [gpu for gpu in there if all(owner.shares for owner in owners.get(gpu, []))]
        open_.sort(key=lambda gpu: (len(owners.get(gpu, [])), gpu))
    else:
        open_ = [gpu for gpu in there if gpu not in owners]
    if len(open_) < want.count:
        taken = ", ".join(f"{gpu}: {' and '.join(owner.slot for owner in owners[gpu])}" for gpu in sorted(owners))
        some = "a GPU" if want.count == 1 else f"{want.count} GPUs"
        raise ConfigError(
            f"{want.slot} needs {some} and {len(open_) or 'none'} of {len(there)} {'is' if len(open_) < 2 else 'are'} "
            f"left ({taken or 'none is there'}); ask for fewer slots, or let slots share with `share_gpus: true`"
        )
    return tuple(sorted(open_[: want.count]))


def _check(
    want: Want,
    gpus: tuple[int, ...],
    owners: dict[int, list[Want]],
    cards: list[Card] | None,
    visible: frozenset[int] | None,
) -> None:
    for gpu in gpus:
        if gpus.count(gpu) > 1:
            raise ConfigError(f"GPU {gpu} is given to {want.slot} twice")
        if cards is not None and gpu not in {card.index for card in cards}:
            last = f"0 to {len(cards) - 1}" if len(cards) > 1 else "0 alone" if cards else "none"
            raise ConfigError(f"GPU {gpu} is given to {want.slot}, and is not there; this machine has {last}")
        if visible is not None and gpu not in visible:
            mine = ", ".join(map(str, sorted(visible)))
            raise ConfigError(f"GPU {gpu} is given to {want.slot}, but CUDA_VISIBLE_DEVICES leaves us {mine} only")
        for other in owners.get(gpu, []):
            if not (want.shares and other.shares):
                raise ConfigError(
                    f"GPU {gpu} is given to {other.slot} and to {want.slot}; a GPU belongs to one slot, unless each of "
                    "them says `share_gpus: true`"
                )


def _share(want: Want, beside: list[list[Want]]) -> float | None:
    """Say what a slot may take of each of its GPUs: as much as it asks, or its part of what the others leave."""
    if want.measured:
        return None
    least = want.share
    for on_it in beside:
        said = sum(other.share or 0.0 for other in on_it)
        if said > MOST:
            who = " and ".join(other.slot for other in on_it)
            raise ConfigError(f"memory_share: {who} ask for {said:g} of one GPU together; at most {MOST:g} can be had")
        silent = sum(other.share is None and not other.measured for other in on_it)
        if want.share is None and len(on_it) > 1:
            part = max(0.0, SHARED - said) / silent
            if part < 0.05:
                raise ConfigError(f"memory_share: the others on its GPU leave {want.slot} none; give each its own")
            least = part if least is None else min(least, part)
    return least
