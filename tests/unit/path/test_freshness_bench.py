"""The freshness benchmark against the real edge on a socket: it reads the contract as the server writes it."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
import uvicorn

from cluster.config import load_settings
from loadtests.bench.harness import run_bench
from serve.stages import EngineRetriever


@pytest.fixture
async def listening(make_edge):
    """Starts an edge with real retrieval and listens for it; yields its URL."""

    def real(edge) -> None:
        edge.retriever = EngineRetriever(edge._bundle, edge.pool)

    @asynccontextmanager
    async def start():
        edge = await make_edge(prepare=real)
        listener = socket.create_server(("127.0.0.1", 0))  # who connects before the server runs, waits in its queue
        server = uvicorn.Server(uvicorn.Config(edge._app(), lifespan="off", log_level="error"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving

    return start


async def measured(tmp_path, capsys, **options):
    """Run the benchmark in a thread, since the edge needs this loop."""
    tree = load_settings("local", [f"cluster.state={tmp_path}"]).model_dump(mode="json")
    code = await asyncio.to_thread(run_bench, "freshness", state=tmp_path, json=True, options=options, settings=tree)
    printed = capsys.readouterr()
    assert printed.out, printed.err
    return code, json.loads(printed.out)


async def test_every_click_and_every_new_item_shows_in_the_next_lists_of_the_real_edge(
    listening, tmp_path, capsys
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("\n".join(f"u{n}" for n in range(6)))
    async with listening() as url:
        code, line = await measured(tmp_path, capsys, url=url, events=12, users=str(users), items=5)
    targets = line["targets"]
    assert code == 0, line
    assert (targets["reflected_share"]["value"], targets["reflected_share"]["n"]) == (1.0, 12)
    assert targets["item_p99_s"]["n"] == 5 and targets["item_p99_s"]["value"] < 10
    assert line["facts"]["items"] == {"put": 5, "never_found": 0, "deleted": 5}
    assert line["facts"]["events"] == {"acknowledged": 12, "users": 6, "not_tried_because": {}}
