"""A small client of the running API, for the command line and the demo. Loopback or wherever `up` listens."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from cluster.errors import OperatorError


class ApiClient:
    """Calls one deployment. Raises OperatorError with the problem's sentence when it refuses."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        headers = {"X-Api-Key": api_key} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def recommend(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return one JSON answer."""
        answer: dict[str, Any] = self._checked(self._send("POST", "/v1/recommend", body)).json()
        return answer

    def stream(self, body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the server-sent events of one answer as they arrive."""
        try:
            with self._http.stream(
                "POST", "/v1/recommend", json=dict(body), headers={"Accept": "text/event-stream"}
            ) as response:
                if response.status_code != 200:
                    response.read()
                    self._checked(response)
                name = ""
                for line in response.iter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        yield name, json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise OperatorError(
                f"no answer from {self._http.base_url}: {error!r}; is `raycommend up` running?"
            ) from error

    def with_reasons(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Stream one answer to its end and return it whole, reasons attached to their items."""
        answer: dict[str, Any] = {}
        for name, data in self.stream({**body, "explain": True}):
            if name == "items":
                answer = data
            elif name == "reason":
                answer["items"][data["rank"] - 1].update(data)
            elif name == "done":
                answer.update({k: data[k] for k in ("degraded", "degraded_reasons", "degradation", "timings_ms")})
        return answer

    def click(self, user_id: str, item_id: str) -> dict[str, Any]:
        """Post one click and return its status; when this returns, the click is durable."""
        event = {"event_id": uuid.uuid4().hex, "user_id": user_id, "item_id": item_id, "type": "click"}
        results = self._checked(self._send("POST", "/v1/events", event)).json()["results"]
        return dict(results[0])

    def ready(self) -> dict[str, Any]:
        """Return the state of each dependency."""
        state: dict[str, Any] = self._send("GET", "/readyz", None).json()
        return state

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=None if body is None else dict(body))
        except httpx.HTTPError as error:
            raise OperatorError(f"no answer from {self._http.base_url}: is `raycommend up` running?") from error

    @staticmethod
    def _checked(response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        try:
            problem = response.json()
            raise OperatorError(f"{problem['title']} ({response.status_code}): {problem['detail']}")
        except (ValueError, KeyError) as error:
            raise OperatorError(f"the server answered {response.status_code}") from error
