"""Which of several processes this is, as torchrun and `accelerate launch` tell it; known without torch."""

from __future__ import annotations

import os


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def index() -> int:
    """This one's number, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return index() == 0


def first_to_fail() -> bool:
    """Whether no other process of this launch has failed before: the first one says why, and the others end silently.

    The launcher's own store keeps the count: it is there before the processes have met, and after one is gone.
    """
    if count() == 1:
        return True
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                         timeout=timedelta(seconds=5), wait_for_workers=False)
        return store.add(f"edgeft/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (ImportError, KeyError, ValueError, RuntimeError):
        return is_main()
