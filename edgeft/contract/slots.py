"""What a method lowers to: the few plain things that a graph can take at run time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # numpy costs 100 ms, and `edgeft --help` imports every plugin
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.floating[Any]]
    Tensors: TypeAlias = dict[str, Array]
else:
    Array = Any
    Tensors = dict


@dataclass
class Lowered:
    """One adapter as slots, module names as in the base's Hugging Face weights, float32.

    lowrank: module -> (A [in, r], B [r, out]), scaling folded into B: `y = base(x) + (x A) B`
    scale:   module -> s [out]: `y = y * s`, after lowrank and after the layer's own bias
    prefix:  layer -> (k, v), each [kv_heads, n, head_dim], keys as the cache holds them
    moved:   trained module -> the module whose slot holds what it learned, where that is another one
    """

    lowrank: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    scale: dict[str, Array] = field(default_factory=dict)
    prefix: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """The slot kinds in use, e.g. ["lowrank"]."""
        return [kind for kind in ("lowrank", "scale", "prefix") if getattr(self, kind)]

    @property
    def modules(self) -> set[str]:
        """Names of the modules that a slot acts on."""
        return set(self.lowrank) | set(self.scale)

    @property
    def acts(self) -> bool:
        """Whether any slot changes anything: a low-rank product that is not 0, a factor that is not 1, a prefix."""
        return bool(self.prefix) or any(a.any() and b.any() for a, b in self.lowrank.values()) \
            or any((scale != 1).any() for scale in self.scale.values())

    @property
    def length(self) -> int:
        """Rows that `prefix` puts before the sequence; 0 without one."""
        return max((key.shape[1] for key, _ in self.prefix.values()), default=0)

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 without `lowrank`."""
        return max((a.shape[1] for a, _ in self.lowrank.values()), default=0)


class BaseView(ABC):
    """What a method may ask about the base that it is lowered for; the exporter implements it."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The base's config.json."""

    @abstractmethod
    def names(self) -> Collection[str]:
        """Names of the base's tensors, Hugging Face style."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one base tensor, without reading it."""

    @abstractmethod
    def tensor(self, name: str) -> Array:
        """One base tensor as float32, with the values that the device will compute with."""

    @abstractmethod
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Linear layers that can take a slot: module -> (in, out)."""

    @abstractmethod
    def keys_values(self, embeddings: Array) -> dict[int, tuple[Array, Array]]:
        """Run the base over input embeddings [n, hidden]; layer -> (k, v) [kv_heads, n, head_dim]."""
