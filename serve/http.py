"""The HTTP edge: bodies, credentials, limits, headers and problem documents around the two services.

Everything a stranger can get wrong ends here in an RFC 9457 document that never holds a traceback, a path, a secret
or what was sent. Knows nothing of Ray; the ingress deployment routes requests to it.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from models.ids import is_valid_id
from serve.auth import Keys
from serve.bodies import MalformedBody, explain, parse_body, parse_events
from serve.degradation import planned_level
from serve.errors import ClientError, InvalidRequest, OverloadError, RecommendError, http_error
from serve.ingest import EventService
from serve.items import ItemService
from serve.later import LaterReasons
from serve.lists import ListService, Ranking
from serve.metrics import ServeMetrics
from serve.parameters import list_query
from serve.recommend import RecommendService, ServerEvent
from serve.schemas import ItemIn, ItemPatch, ListQuery, RecommendRequest
from serve.settings import ServeSettings
from serve.user_schemas import LinkRequest, ProfileRequest, UserIn
from serve.users import UserService

log = logging.getLogger("raycommend.http")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:~-]{1,128}\Z")
_PROBLEM_TYPE = "about:blank"


class BodyTooLarge(ClientError):
    """The body is longer than the limit."""


_BODY_STATUS: dict[type[RecommendError], int] = {MalformedBody: 400, BodyTooLarge: 413}


class HttpEdge:
    """Turns requests into calls of the services and their results or errors into responses."""

    def __init__(
        self,
        *,
        keys: Keys,
        settings: ServeSettings,
        recommend: RecommendService,
        events: EventService,
        lists: ListService,
        items: ItemService,
        users: UserService,
        later: LaterReasons,
        ready: Callable[[], Awaitable[dict[str, Any]]],
        metrics: ServeMetrics,
    ) -> None:
        """`ready` reports the state of each dependency, with `ready` true or false."""
        self._keys = keys
        self._settings = settings
        self._recommend = recommend
        self._events = events
        self._lists = lists
        self._items = items
        self._users = users
        self._later = later
        self._ready = ready
        self._metrics = metrics
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Requests being worked on."""
        return self._in_flight

    async def recommend(self, request: Request) -> Response:
        """Answer `POST /v1/recommend` as JSON, or as server-sent events where the caller accepts them."""

        async def run(request_id: str) -> Response:
            tenant = self._tenant(request)
            body = parse_body(RecommendRequest, await self._body(request))
            planned = planned_level(self._in_flight, capacity=self._settings.max_in_flight)
            if "text/event-stream" in request.headers.get("accept", ""):
                events = self._recommend.stream(body, tenant=tenant, request_id=request_id, planned=planned)
                # The first event is awaited here, so that what goes wrong before the list is a proper error.
                return self._streamed(request_id, await anext(events), events)
            answer = await self._recommend.answer(body, tenant=tenant, request_id=request_id, planned=planned)
            return Response(
                orjson.dumps(answer),
                media_type="application/json",
                headers=_headers(request_id, answer["timings_ms"]),
            )

        return await self._guard(request, run)

    async def reasons(self, request: Request) -> Response:
        """Answer `GET /v1/decisions/{decision_id}/reasons` as JSON or as server-sent events."""

        async def run(request_id: str) -> Response:
            tenant, decision_id = self._tenant(request), _path_id(request, "decision_id")
            wanted = _reasons_deadline(request)
            planned = planned_level(self._in_flight, capacity=self._settings.max_in_flight)
            who = {"tenant": tenant, "request_id": request_id, "planned": planned}
            if "text/event-stream" not in request.headers.get("accept", ""):
                return _json(await self._later.answer(decision_id, wanted, **who))  # type: ignore[arg-type]
            events = self._later.stream(decision_id, wanted, **who)  # type: ignore[arg-type]
            return self._streamed(request_id, await anext(events), events)

        return await self._guard(request, run)

    def _streamed(self, request_id: str, first: ServerEvent, rest: AsyncIterator[ServerEvent]) -> Response:
        headers = {**_headers(request_id, first[1].get("timings_ms", {})), "Cache-Control": "no-store"}
        body = self._counted(_server_sent(first, rest))
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    async def events(self, request: Request) -> Response:
        """Answer `POST /v1/events`: one event, or a list of up to 500."""

        async def run(request_id: str) -> Response:
            tenant = self._tenant(request)
            parsed, results = parse_events(await self._body(request))
            accepted = iter(await self._events.accept(parsed, tenant=tenant) if parsed else [])
            done = [result if result is not None else next(accepted) for result in results]
            body = {"request_id": request_id, "results": [r.model_dump(exclude_none=True) for r in done]}
            return Response(
                orjson.dumps(body), 202, media_type="application/json", headers={"X-Request-Id": request_id}
            )

        return await self._guard(request, run)

    async def similar(self, request: Request) -> Response:
        """Answer `GET /v1/items/{item_id}/similar`."""

        async def run(request_id: str) -> Response:
            tenant, item_id = self._tenant(request), _item_id(request)
            wanted = _list_query(request)
            return _json(await self._lists.similar(item_id, wanted, tenant=tenant, request_id=request_id))

        return await self._guard(request, run)

    async def item(self, request: Request) -> Response:
        """Answer `PUT`, `PATCH` and `DELETE /v1/items/{item_id}`."""

        async def run(request_id: str) -> Response:
            tenant, item_id = self._tenant(request), _item_id(request)
            who = {"tenant": tenant, "request_id": request_id}
            if request.method == "DELETE":
                return _json(await self._items.remove(item_id, **who))
            body = await self._body(request)
            if request.method == "PATCH":
                return _json(await self._items.patch(item_id, parse_body(ItemPatch, body), **who))
            return _json(await self._items.put(item_id, parse_body(ItemIn, body), **who))

        return await self._guard(request, run)

    async def ranking(self, request: Request, by: Ranking) -> Response:
        """Answer `GET /v1/items:popular` or `GET /v1/items:trending`."""

        async def run(request_id: str) -> Response:
            tenant, wanted = self._tenant(request), _list_query(request)
            return _json(await self._lists.ranking(by, wanted, tenant=tenant, request_id=request_id))

        return await self._guard(request, run)

    async def declare(self, request: Request) -> Response:
        """Answer `PUT /v1/users`."""

        async def run(request_id: str) -> Response:
            tenant, wanted = self._tenant(request), parse_body(UserIn, await self._body(request))
            return _json(await self._users.declare(wanted, tenant=tenant, request_id=request_id))

        return await self._guard(request, run)

    async def link(self, request: Request) -> Response:
        """Answer `POST /v1/users:link`."""

        async def run(request_id: str) -> Response:
            tenant, wanted = self._tenant(request), parse_body(LinkRequest, await self._body(request))
            return _json(await self._users.link(wanted, tenant=tenant, request_id=request_id))

        return await self._guard(request, run)

    async def profile(self, request: Request) -> Response:
        """Answer `POST /v1/users:profile`."""

        async def run(request_id: str) -> Response:
            tenant, wanted = self._tenant(request), parse_body(ProfileRequest, await self._body(request))
            return _json(await self._users.profile(wanted, tenant=tenant, request_id=request_id))

        return await self._guard(request, run)

    async def readyz(self, request: Request) -> Response:
        """Answer `GET /readyz` with the state of each dependency."""
        state = await self._ready()
        return Response(orjson.dumps(state), 200 if state["ready"] else 503, media_type="application/json")

    async def _guard(self, request: Request, run: Callable[[str], Awaitable[Response]]) -> Response:
        request_id = request_id_of(request)
        self._in_flight += 1
        try:
            if self._in_flight > self._settings.max_in_flight:
                raise OverloadError("too many requests at once", retry_after_s=1.0)
            return await run(request_id)
        except ClientDisconnect:
            return self._problem(request_id, 499, "Client closed the request", "the body never arrived")
        except RecommendError as error:
            return self._refusal(request_id, error)
        except Exception as error:
            # The message may hold what a caller sent; the type and place are enough to find the mistake.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("request %s failed with %s\n%s", request_id, type(error).__name__, place)
            return self._problem(request_id, 500, "Internal error", "the request id finds this in the log")
        finally:
            self._in_flight -= 1

    def _refusal(self, request_id: str, error: RecommendError) -> Response:
        row = http_error(error)
        status = _BODY_STATUS.get(type(error), row.status)
        detail = error.message if status < 500 or isinstance(error, OverloadError) else row.title
        retry_after = error.retry_after_s if isinstance(error, OverloadError) else 1.0 if status == 503 else None
        if status >= 500:
            log.warning("request %s answered %d: %s", request_id, status, type(error).__name__)
        return self._problem(request_id, status, row.title, detail, retry_after_s=retry_after)

    def _problem(
        self, request_id: str, status: int, title: str, detail: str, *, retry_after_s: float | None = None
    ) -> Response:
        self._metrics.refused(status)
        return problem(request_id, status, title, detail, retry_after_s=retry_after_s)

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Keep a stream in the count of requests in flight until its last byte."""
        self._in_flight += 1
        try:
            async with aclosing(chunks) as source:  # type: ignore[type-var]
                async for chunk in source:
                    yield chunk
        finally:
            self._in_flight -= 1

    def _tenant(self, request: Request) -> str:
        return self._keys.tenant_of(request.headers.get("authorization"), request.headers.get("x-api-key"))

    async def _body(self, request: Request) -> bytes:
        limit = self._settings.max_body_bytes
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise BodyTooLarge(f"the body has more than {limit} bytes")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLarge(f"the body has more than {limit} bytes")
        return bytes(body)


def problem(request_id: str, status: int, title: str, detail: str, *, retry_after_s: float | None = None) -> Response:
    """Return an RFC 9457 problem document."""
    headers = {"X-Request-Id": request_id}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"type": _PROBLEM_TYPE, "title": title, "status": status, "detail": detail, "request_id": request_id}
    return Response(orjson.dumps(body), status, media_type="application/problem+json", headers=headers)


def request_id_of(request: Request) -> str:
    """Return the caller's request id where it is a valid one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else uuid.uuid4().hex


def _headers(request_id: str, timings_ms: dict[str, float]) -> dict[str, str]:
    timing = ", ".join(f"{name};dur={value:.3f}" for name, value in timings_ms.items())
    return {"X-Request-Id": request_id, **({"Server-Timing": timing} if timing else {})}


def _item_id(request: Request) -> str:
    return _path_id(request, "item_id")


def _path_id(request: Request, name: str) -> str:
    found = str(request.path_params[name])
    if not is_valid_id(found):
        raise InvalidRequest(f"the path holds no valid {name.replace('_', ' ')}")
    return found


def _reasons_deadline(request: Request) -> int | None:
    """Return the one parameter there is, in milliseconds; None where it is not given. Raises InvalidRequest."""
    given = request.query_params.multi_items()
    if not given:
        return None
    if len(given) > 1 or given[0][0] != "reasons_deadline_ms" or not re.fullmatch(r"[0-9]{1,6}", given[0][1]):
        raise InvalidRequest("the only parameter is reasons_deadline_ms, a number of milliseconds up to 120000")
    if int(given[0][1]) > 120_000:
        raise InvalidRequest("reasons_deadline_ms is at most 120000")
    return int(given[0][1])


def _list_query(request: Request) -> ListQuery:
    try:
        return list_query(request.query_params.multi_items())
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from error


def _json(answer: dict[str, Any]) -> Response:
    headers = _headers(answer["request_id"], answer.get("timings_ms", {}))
    return Response(orjson.dumps(answer), media_type="application/json", headers=headers)


async def _server_sent(first: ServerEvent, events: AsyncIterator[ServerEvent]) -> AsyncIterator[bytes]:
    async with aclosing(events) as rest:  # type: ignore[type-var]
        yield _frame(first)
        async for event in rest:
            yield _frame(event)


def _frame(event: ServerEvent) -> bytes:
    return b"event: " + event[0].encode() + b"\ndata: " + orjson.dumps(event[1]) + b"\n\n"


async def loop_lag(observe: Callable[[float], None], *, period_s: float = 0.5) -> None:
    """Measure for ever how late the event loop runs a timer."""
    import asyncio

    while True:
        started = time.perf_counter()
        await asyncio.sleep(period_s)
        observe(max(0.0, time.perf_counter() - started - period_s))
