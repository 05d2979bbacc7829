"""What an adapter may forget: nats per token on text that the base knew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from .data import kind_of, read_records
from .errors import UsageError


@dataclass(frozen=True)
class Budget:
    """A limit, the text that it is measured on, and optionally data of the task, whose loss is told beside it."""

    nats: float
    probe: Path
    data: Path | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.nats) or self.nats < 0:
            raise UsageError(f"--forgetting-budget must be a finite number of nats per token, 0 or more, found "
                             f"{self.nats:g}.")

    def check_files(self) -> None:
        """UsageError for a probe that is no plain text; both files are read and found whole."""
        if kind_of(read_records(self.probe)[0]) != "text":
            raise UsageError(f"{self.probe}: a probe for forgetting holds lines of {{\"text\": ...}}.")
        if self.data is not None and kind_of(read_records(self.data)[0]) == "label":
            raise UsageError(f"{self.data}: forgetting is of language models, and lines with 'label' are for "
                             "classifiers.")
