"""What the stages and every plugin agree on: numpy and the standard library, nothing else."""

from .errors import CannotLower
from .method import Method
from .slots import BaseView, Lowered
from .tasks import TaskOptions

__all__ = ["BaseView", "CannotLower", "Lowered", "Method", "TaskOptions"]
