"""What the Hub or its client refuses, as one message with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mupscale_cli import errors
from mupscale_cli.checkpoints.hub.ids import HubId
from mupscale_cli.errors import HubError, MupscaleError

_LOGIN = "`hf auth login`, or set HF_TOKEN"
_AGAIN = "try again; what was transferred already is not transferred again"
_MAX_MESSAGE = 300


@contextmanager
def hub_errors(doing: str, model: HubId) -> Iterator[None]:
    """Turn what the client raises into one message.

    Args:
        doing: what was tried, as in "cannot {doing} `org/name`".
        model: of the Hub.

    Raises:
        HubError: whatever it was: no such model or revision, no access, no connection, a busy server.
    """
    try:
        yield
    except MupscaleError:
        raise
    # Of the connection, of files, for values that the client refuses, and for a broken transfer by Xet.
    except (transport_error(), OSError, ValueError, RuntimeError) as error:
        raise hub_error(error, doing, model) from error
    except KeyError as error:  # as when HF_ENDPOINT is something else
        raise HubError(
            f"cannot {doing} `{model}`: the Hub's answer has no {error}", hint="is HF_ENDPOINT a Hub?"
        ) from error


def transport_error() -> type[Exception]:
    """What the client raises when there is no answer; its HTTP library has had several names."""
    from huggingface_hub.errors import HfHubHTTPError  # a sixth of a second, which only commands on the Hub need

    return HfHubHTTPError.__bases__[0]


def hub_error(error: BaseException, doing: str, model: HubId) -> HubError:
    """The message for what the client raised."""
    from huggingface_hub import errors as hub

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, transport_error()):
        return hub_error(error.__cause__, doing, model)  # of an upload, which names the file but not the reason
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, hub.LocalEntryNotFoundError):
        # Nothing cached either; the cause says why the Hub was not asked, or what it answered.
        cause = error.__cause__ or error.__context__
        if cause is not None and getattr(cause, "response", None) is not None:
            return hub_error(cause, doing, model)
        return _not_reached(doing, model, offline=_is_offline(), cached=False)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return _not_reached(doing, model, offline=True)
    if isinstance(error, hub.GatedRepoError):
        return HubError(f"`{model}` is gated", hint=f"ask for access at its page on the Hub, then {_LOGIN}")
    if isinstance(error, hub.DisabledRepoError):
        return HubError(f"`{model}` was disabled by the Hub")
    if isinstance(error, hub.RevisionNotFoundError):
        return HubError(
            f"`{model.repo}` has no revision `{model.revision or 'main'}`", hint="check its branches and tags"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        path = "" if "push" in doing else "neither a file nor a folder of that name, and "
        return HubError(
            f"cannot {doing} `{model}`: there is {path}no such model on the Hub, or no access to it",
            hint=f"check the name; for a private model, {_LOGIN}",
        )
    if isinstance(error, hub.EntryNotFoundError):
        return HubError(f"cannot {doing} `{model}`: {_told(error)}", hint="was it changed meanwhile? try again")
    if isinstance(status, int):
        return _answered(status, error, doing, model)
    if isinstance(error, transport_error()):
        return _not_reached(doing, model, offline=False)
    return HubError(
        f"cannot {doing} `{model}`: {_told(error)}", hint=_AGAIN if isinstance(error, RuntimeError) else None
    )


def _answered(status: int, error: BaseException, doing: str, model: HubId) -> HubError:
    """The message for a status of HTTP."""
    hints = {
        401: f"the token is missing, wrong or expired: {_LOGIN}",
        403: "the token lacks this right: it needs to be one that may "
        + ("write to it" if "push" in doing else "read it")
        + f"; {_LOGIN}",
        404: "check the name",
        409: "somebody changes it at the same time; try again",
        412: "it was changed meanwhile; try again",
        413: "a file is too large for the Hub; choose a smaller `--max-shard-size` when widening",
        429: "the Hub limits how often it is asked; wait some minutes, or log in, then try again",
    }
    reasons = {
        401: "the Hub does not know who asks",
        403: "the Hub forbids it",
        429: "too many requests",
        409: "a conflict",
    }
    reason = reasons.get(status, "the Hub has a problem" if status >= 500 else "the Hub refuses")
    said = _server_message(error)
    hint = hints.get(status, f"{_AGAIN}; status.huggingface.co says whether it is known" if status >= 500 else None)
    return HubError(f"cannot {doing} `{model}`: {reason} (HTTP {status}{': ' + said if said else ''})", hint=hint)


def _not_reached(doing: str, model: HubId, *, offline: bool, cached: bool | None = None) -> HubError:
    """The message for a Hub that was not asked; `cached` says whether the cache could answer, if it was asked."""
    reason = "offline mode does not ask the Hub (HF_HUB_OFFLINE)" if offline else "the Hub cannot be reached"
    where = "" if cached is None else ", and it is not in the cache"
    path = "" if "push" in doing else "it is no path, "
    hint = "unset HF_HUB_OFFLINE" if offline else "check the connection (HF_ENDPOINT, proxies)"
    other = "" if "push" in doing else ", or give the path of a checkpoint"
    return HubError(f"cannot {doing} `{model}`: {path}{reason}{where}", hint=hint + other)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _server_message(error: BaseException) -> str:
    return _clean(str(getattr(error, "server_message", None) or ""))


def _told(error: Any) -> str:
    """The first line of an error, which with the Hub's own errors is the one that says something."""
    return _server_message(error) or _clean(str(error))


def _clean(text: str) -> str:
    """One line without secrets."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return without_secrets(line)[:_MAX_MESSAGE].rstrip(".")


def without_secrets(text: str) -> str:
    """A text without tokens and passwords, the user's own token in any form included."""
    from huggingface_hub import get_token

    token = get_token()
    return errors.without_secrets(text.replace(token, "***") if token else text)
