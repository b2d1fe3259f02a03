"""Proving that two models compute the same function, and train alike."""

from mupscale_cli.verification.comparing import VerifyOptions, train_checkpoints, verify_checkpoints
from mupscale_cli.verification.result import (
    CannotVerify,
    Comparison,
    TrainingVerification,
    Verification,
    WeightsCheck,
)
from mupscale_cli.verification.weights import check_state, check_weights

__all__ = [
    "CannotVerify",
    "Comparison",
    "TrainingVerification",
    "Verification",
    "VerifyOptions",
    "WeightsCheck",
    "check_state",
    "check_weights",
    "train_checkpoints",
    "verify_checkpoints",
]
