"""Proving that two models compute the same function."""

from mupscale_cli.verify.result import CannotVerify, Comparison, Verification
from mupscale_cli.verify.run import VerifyOptions, verify_checkpoints

__all__ = ["CannotVerify", "Comparison", "Verification", "VerifyOptions", "verify_checkpoints"]
