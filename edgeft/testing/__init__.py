"""The kit that every method must pass, ours and others': one named test per rule, on tiny random bases, offline.

    from edgeft.testing import MethodKit
    from edgeft_bitfit import BitFit

    class TestBitFit(MethodKit):
        method = BitFit()
"""

from .case import Case, RuleBroken, RuleSkipped
from .kit import MethodKit
from .rules import RULES

__all__ = ["RULES", "Case", "MethodKit", "RuleBroken", "RuleSkipped"]
