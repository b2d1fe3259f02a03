"""Errors of the Hub and its client, each as one message with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mupscale_cli import errors
from mupscale_cli.checkpoints.hub.ids import HubId
from mupscale_cli.errors import HubError, MupscaleError, UnreachableError

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_RETRY = "try again; completed transfers are not repeated"
_MAX_MESSAGE = 300


@contextmanager
def hub_errors(action: str, model: HubId) -> Iterator[None]:
    """Turn exceptions of the Hub's client into `HubError`.

    Args:
        action: attempted action, as in "cannot {action} `org/name`".
        model: the model on the Hub.

    Raises:
        HubError: the model or revision does not exist, access is denied, the connection failed, or the server is busy.
    """
    try:
        yield
    except MupscaleError:
        raise
    # Respectively: connection errors, file errors, values that the client rejects, and broken Xet transfers.
    except (transport_error(), OSError, ValueError, RuntimeError) as error:
        raise hub_error(error, action, model) from error
    except KeyError as error:  # for instance when HF_ENDPOINT points to another kind of server
        raise HubError(
            f"cannot {action} `{model}`: the Hub's response has no {error}", hint="check that HF_ENDPOINT is a Hub"
        ) from error


def transport_error() -> type[Exception]:
    """Return the client's base exception for failed requests, which depends on its HTTP library (requests, httpx)."""
    from huggingface_hub.errors import HfHubHTTPError  # takes a sixth of a second; only Hub commands need it

    return HfHubHTTPError.__bases__[0]


def hub_error(error: BaseException, action: str, model: HubId) -> HubError:
    """Return the error to show for an exception of the client.

    Args:
        error: exception that the client raised.
        action: attempted action, as in "cannot {action} `org/name`".
        model: the model on the Hub.
    """
    from huggingface_hub import errors as hub

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, transport_error()):
        return hub_error(error.__cause__, action, model)  # a failed upload names the file but not the reason
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, hub.LocalEntryNotFoundError):
        # The cache does not contain it either. The cause tells why the request failed or was not sent.
        cause = error.__cause__ or error.__context__
        if cause is not None and getattr(cause, "response", None) is not None:
            return hub_error(cause, action, model)
        return _unreachable(action, model, offline=_is_offline(), is_cached=False)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return _unreachable(action, model, offline=True)
    if isinstance(error, hub.GatedRepoError):
        return HubError(f"`{model}` is gated", hint=f"request access on its Hub page, then {_LOGIN}")
    if isinstance(error, hub.DisabledRepoError):
        return HubError(f"`{model}` was disabled by the Hub")
    if isinstance(error, hub.RevisionNotFoundError):
        return HubError(
            f"`{model.repo}` has no revision `{model.revision or 'main'}`", hint="check its branches and tags"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        path = "" if "push" in action else "no file or folder has this name, and "
        return HubError(
            f"cannot {action} `{model}`: {path}the model does not exist on the Hub or is not accessible",
            hint=f"check the name; for a private model, {_LOGIN}",
        )
    if isinstance(error, hub.EntryNotFoundError):
        return HubError(
            f"cannot {action} `{model}`: {_message(error)}", hint="the repository may have changed; try again"
        )
    if isinstance(status, int):
        return _http_error(status, error, action, model)
    if isinstance(error, transport_error()):
        return _unreachable(action, model, offline=False)
    return HubError(
        f"cannot {action} `{model}`: {_message(error)}", hint=_RETRY if isinstance(error, RuntimeError) else None
    )


def _http_error(status: int, error: BaseException, action: str, model: HubId) -> HubError:
    """Return the error for an HTTP status."""
    access = "write" if "push" in action else "read"
    hints = {
        401: f"the token is missing, invalid or expired: {_LOGIN}",
        403: f"the token needs {access} access to this repository; {_LOGIN}",
        404: "check the name",
        409: "the repository is being changed at the same time; try again",
        412: "the repository has changed in the meantime; try again",
        413: "a file is too large for the Hub; use a smaller `--max-shard-size` when widening",
        429: "the Hub limits the request rate; wait a few minutes, or log in, then try again",
    }
    reasons = {
        401: "not logged in to the Hub",
        403: "access denied",
        429: "too many requests",
        409: "conflict",
    }
    reason = reasons.get(status, "the Hub has a problem" if status >= 500 else "the Hub rejected the request")
    message = _server_message(error)
    hint = hints.get(status, f"{_RETRY}; see status.huggingface.co for known problems" if status >= 500 else None)
    return HubError(
        f"cannot {action} `{model}`: {reason} (HTTP {status}{': ' + message if message else ''})", hint=hint
    )


def _unreachable(action: str, model: HubId, *, offline: bool, is_cached: bool | None = None) -> UnreachableError:
    """Return the error for a Hub that did not respond.

    Args:
        action: attempted action.
        model: the model on the Hub.
        offline: whether offline mode prevented the request.
        is_cached: whether the cache contains the model; None if the cache was not searched.
    """
    reason = "offline mode is on (HF_HUB_OFFLINE)" if offline else "the Hub cannot be reached"
    where = "" if is_cached is None else ", and it is not in the cache"
    path = "" if "push" in action else "no such file or folder, "
    hint = "unset HF_HUB_OFFLINE" if offline else "check the connection (HF_ENDPOINT, proxies)"
    alternative = "" if "push" in action else ", or pass the path of a checkpoint"
    return UnreachableError(f"cannot {action} `{model}`: {path}{reason}{where}", hint=hint + alternative)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _server_message(error: BaseException) -> str:
    return _clean(str(getattr(error, "server_message", None) or ""))


def _message(error: Any) -> str:
    """Return the server's message, or the first line of the error."""
    return _server_message(error) or _clean(str(error))


def _clean(text: str) -> str:
    """Return the first non-empty line, shortened and without secrets."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return without_secrets(line)[:_MAX_MESSAGE].rstrip(".")


def without_secrets(text: str) -> str:
    """Return a text with tokens and passwords masked, including the user's own token."""
    from huggingface_hub import get_token

    token = get_token()
    return errors.without_secrets(text.replace(token, "***") if token else text)
