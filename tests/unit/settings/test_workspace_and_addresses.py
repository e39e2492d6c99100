"""What a deployment keeps secret, where its API is reached, and when the demo may say that it worked."""

import json
import stat

import pytest

from cluster.config import Settings, load_settings
from cluster.demo import shows_the_product
from cluster.stack import api_url, history_marker
from cluster.workspace import Workspace
from serve.deployments.replica import CACHE_URL, SIGNING_KEY, STORE_URL

SECRETS = (SIGNING_KEY, STORE_URL, CACHE_URL)


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    return load_settings("local", [f"cluster.state={tmp_path}"])


def test_secrets_are_made_once_and_only_their_owner_reads_them(settings) -> None:
    first, again = Workspace(settings).secrets(), Workspace(settings).secrets()
    assert first == again and set(first) == set(SECRETS)
    file = settings.state / "secrets.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [f.name for f in settings.state.iterdir()] == [file.name]  # no draft is left


def test_a_secret_of_an_older_file_is_kept_when_another_one_is_added(settings) -> None:
    (settings.state / "secrets.json").write_text(json.dumps({"store_password": "as-before"}))
    assert ":as-before@" in Workspace(settings).secrets()[STORE_URL]
    assert Workspace(settings).store_password() == "as-before"


def test_a_signing_key_of_the_environment_wins_also_beside_embedded_servers(settings, monkeypatch) -> None:
    monkeypatch.setenv(SIGNING_KEY, "a key that other nodes share")
    monkeypatch.setenv(STORE_URL, "redis://elsewhere:6379/0")
    found = Workspace(settings).secrets()
    assert found[SIGNING_KEY] == "a key that other nodes share"
    assert "127.0.0.1" in found[STORE_URL]  # embedded means our own server


@pytest.mark.parametrize(
    ("host", "prefix", "url"),
    [
        ("127.0.0.1", "/", "http://127.0.0.1:8000"),
        ("0.0.0.0", "/", "http://127.0.0.1:8000"),
        ("localhost", "/films", "http://127.0.0.1:8000/films"),
        ("10.1.2.3", "/films/", "http://10.1.2.3:8000/films"),
    ],
)
def test_commands_reach_the_api_where_it_is_served(host: str, prefix: str, url: str, monkeypatch) -> None:
    settings = Settings()
    serve = settings.serve.model_copy(update={"host": host, "route_prefix": prefix})
    assert api_url(settings.model_copy(update={"serve": serve})) == url


def test_a_store_that_was_replaced_gets_the_users_history_again(settings) -> None:
    store = settings.cluster.store.model_copy(update={"mode": "external"})
    away = settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"store": store})})
    first = history_marker(away, "redis://:secret@a:6379/0")
    assert first == history_marker(away, "rediss://user:other@a:6379/0")
    others = {history_marker(away, f"redis://{place}") for place in ("b:6379/0", "a:6380/0", "a:6379/1")}
    assert len(others) == 3 and first not in others
    assert "secret" not in str(first)
    assert history_marker(settings, "redis://x").parent == settings.state / "store"  # deleted with its data


def answer(*ids: str, source: str = "llm") -> dict:
    return {"items": [{"item_id": i, "impression": f"proof-{i}-{id(ids)}", "reason_source": source} for i in ids]}


@pytest.mark.parametrize(
    ("first", "second", "ok"),
    [
        (answer("1", "2"), answer("2", "1"), True),
        (answer("1", "2"), answer("1", "3", source="cache"), True),
        (answer("1", "2"), answer("1", "2"), False),
        (answer("1", "2"), answer("1", "3", source="template"), False),
        (answer(), answer("1"), False),
    ],
)
def test_the_demo_is_ok_only_if_the_list_moved_and_the_model_wrote(first: dict, second: dict, ok: bool) -> None:
    assert shows_the_product(first, second) is ok
