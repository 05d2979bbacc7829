"""Base weights as the exporter reads them: streamed from the folder, with a merged method folded in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.contract.slots import Array, BaseView
from edgeft.contract.tensors import Weights

Merge = Callable[[str, Array], Array]
KeysValues = Callable[[Array], dict[int, tuple[Array, Array]]]

# names in files from before transformers 2, which it still reads: bert-base-uncased's own file has them
OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class EncoderWeights(Weights):
    """An encoder's weights under the names of the whole model, whether the file holds that or the bare encoder."""

    def __init__(self, folder: Path, prefix: str) -> None:
        super().__init__(folder)
        bare = not any(name.startswith(f"{prefix}.") for name in self._where)
        self._stored: dict[str, str] = {}
        for stored in self._where:
            name = f"{prefix}.{stored}" if bare else stored
            for old, new in OLD.items():
                name = name.removesuffix(old) + new if name.endswith(old) else name
            self._stored[name] = stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __getitem__(self, name: str) -> Array:
        return super().__getitem__(self._stored[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return super().shape(self._stored[name])


class Source(Mapping[str, Array]):
    """Tensors under their Hugging Face names, float32, merged as they are read; none is kept.

    `tied` maps a head's tensor name to the embedding's that it shares, for bases that store it once; `torn` does
    for heads that a merge made differ from it.
    """

    def __init__(self, weights: Weights, tied: Mapping[str, str], merge: Merge | None = None) -> None:
        self._weights, self._merge = weights, merge
        self.tied = {name: source for name, source in tied.items() if name not in weights and source in weights}
        if merge:  # an adapter on one of the two only tears them apart
            self.tied = {name: source for name, source in self.tied.items() if self._still_tied(name, source)}
            torn = set(tied) - set(self.tied) - set(weights)
        else:
            torn = set()
        self.torn = {name: tied[name] for name in torn if tied[name] in weights}

    @property
    def stored(self) -> Weights:
        """The tensors as the folder holds them, without what is merged in."""
        return self._weights

    def _still_tied(self, name: str, source: str) -> bool:
        assert self._merge is not None
        stored = self._weights[source]
        return np.array_equal(self._merge(name, stored), self._merge(source, stored))

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        yield from self.torn

    def __len__(self) -> int:
        return len(self._weights) + len(self.torn)

    def __getitem__(self, name: str) -> Array:
        stored = np.asarray(self._weights[self.torn.get(name, name)], np.float32)
        return self._merge(name, stored) if self._merge else stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._weights.shape(self.torn.get(name, name))


class GraphBase(BaseView):
    """What a method may ask about the base, answered from its folder and from where slots can go.

    `on_device` rounds a tensor as the bundle stores it, so that slots which depend on weights fit those of the device;
    `keys_values` runs the base, just as rounded.
    """

    def __init__(self, config: Mapping[str, Any], source: Source, linears: Mapping[str, tuple[int, int]],
                 keys_values: KeysValues, on_device: Merge | None = None) -> None:
        self._config, self._source, self._linears = config, source, linears
        self._keys_values, self._on_device = keys_values, on_device

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def names(self) -> Collection[str]:
        return list(self._source)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def tensor(self, name: str) -> Array:
        array = self._source[self._source.tied.get(name, name)]
        return self._on_device(name, array) if self._on_device else array

    def linears(self) -> Mapping[str, tuple[int, int]]:
        return self._linears

    def keys_values(self, embeddings: Array) -> dict[int, tuple[Array, Array]]:
        return self._keys_values(embeddings)
