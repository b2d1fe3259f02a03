"""Proving that two models compute the same function, and train alike."""

from mupscale_cli.verification.result import CannotVerify, Comparison, TrainingVerification, Verification
from mupscale_cli.verification.run import VerifyOptions, train_checkpoints, verify_checkpoints

__all__ = [
    "CannotVerify",
    "Comparison",
    "TrainingVerification",
    "Verification",
    "VerifyOptions",
    "train_checkpoints",
    "verify_checkpoints",
]
