"""Documents of `--json`: what `demo` prints."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from mupscale_cli.record.types import Count


class Trained(TypedDict):
    """The narrow model of the demo."""

    parameters: Annotated[Count, "Number of parameters."]
    steps: Annotated[Count, "Number of training steps."]
    first_loss: Annotated[float, "Loss of the first step, in nats per byte."]
    last_loss: Annotated[float, "Mean loss of the last ten steps, in nats per byte."]


class Ran(TypedDict):
    """A command of the demo."""

    command: Annotated[str, "The command line."]
    printed: Annotated[dict[str, Any], "The document that it printed."]


class Demo(TypedDict):
    """Output of `mupscale demo`."""

    directory: Annotated[str, "Folder of the models."]
    trained: Annotated[Trained, "The narrow model."]
    commands: Annotated[list[Ran], "The commands."]
    prompt: Annotated[str, "Prompt of the continuations."]
    texts: Annotated[dict[str, str], "Continuation of the prompt, by model."]
    losses: Annotated[
        dict[str, Annotated[list[float], "Loss of each step."]], "Losses of continued training, by model."
    ]
