"""The closed tree of errors a request can meet, and the one table that maps them to HTTP.

    RecommendError
    ├── ClientError            the caller must change something
    │   ├── InvalidRequest
    │   ├── NotFound       what the path names is not there
    │   │   └── NotSampled     of this decision only the served record exists
    │   └── Unauthorised
    ├── OverloadError          try again later; carries `retry_after_s`
    ├── DependencyError        a store or model that a stage needs is not there
    ├── DeadlineExceeded       a budget ran out
    ├── ReleaseMissing         a replica does not hold the pinned release
    ├── ContractViolation      a programmer error: never fails open
    └── ConfigError            the settings cannot work

Every error takes one positional message and keyword-only extras with defaults, so that it survives pickling
between processes. Messages never hold user ids, texts or secrets. Called by everything in `serve`.
"""

from __future__ import annotations

from dataclasses import dataclass


class RecommendError(Exception):
    """Base of all errors raised on the request path."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The human-readable sentence."""
        return str(self.args[0]) if self.args else ""


class ClientError(RecommendError):
    """The request cannot be answered as it is."""


class InvalidRequest(ClientError):
    """The request is well-formed JSON that the contract refuses."""


class NotFound(ClientError):
    """What the path names does not exist."""


class NotSampled(NotFound):
    """Nothing but the served record is kept of the decision that the path names."""


class Unauthorised(ClientError):
    """No credential, or one that is not known."""


class OverloadError(RecommendError):
    """Refused before any work."""

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DependencyError(RecommendError):
    """Something a stage depends on did not answer or answered nonsense."""


class DeadlineExceeded(RecommendError):
    """The budget of a stage or of the request ran out."""


class ReleaseMissing(RecommendError):
    """The replica does not hold the release that the request is pinned to."""


class ContractViolation(RecommendError):
    """A stage broke its port's contract; the request fails loudly."""


class ConfigError(RecommendError):
    """The settings are contradictory or incomplete; the message names every problem."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """How an error looks over HTTP (RFC 9457 `title` and `status`)."""

    status: int
    title: str


HTTP_ERRORS: dict[type[RecommendError], HttpError] = {
    InvalidRequest: HttpError(422, "Invalid request"),
    NotFound: HttpError(404, "Not found"),
    NotSampled: HttpError(404, "not_sampled"),
    Unauthorised: HttpError(401, "Unauthorised"),
    ClientError: HttpError(400, "Bad request"),
    OverloadError: HttpError(503, "Overloaded"),
    DependencyError: HttpError(503, "A dependency is unavailable"),
    DeadlineExceeded: HttpError(504, "Deadline exceeded"),
    ReleaseMissing: HttpError(503, "Release not loaded"),
    ContractViolation: HttpError(500, "Internal error"),
    ConfigError: HttpError(500, "Internal error"),
    RecommendError: HttpError(500, "Internal error"),
}


def http_error(error: RecommendError) -> HttpError:
    """Return the most specific row of the table for `error`."""
    return next(HTTP_ERRORS[kind] for kind in type(error).__mro__ if kind in HTTP_ERRORS)
