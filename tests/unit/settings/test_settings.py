"""The settings tree: every mistake is named, all at once, before anything starts."""

import ast
import inspect
import textwrap
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from cluster.config import ENVS, Settings, SettingsInvalid, contradictions, load_settings
from cluster.stack import differences


def load(*overrides: str, env: str = "local", **environ: str) -> Settings:
    return load_settings(env, overrides, environ=environ)


def refused(*overrides: str, env: str = "local", **environ: str) -> str:
    with pytest.raises(SettingsInvalid) as error:
        load(*overrides, env=env, **environ)
    return str(error.value)


def sections(model: type[BaseModel] = Settings, path: str = ""):
    yield path, model
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{path}.{name}".lstrip("."))


def test_the_defaults_and_every_environment_we_ship_are_sound() -> None:
    secrets = {"RAYCOMMEND_API_KEYS": "main=0123456789abcdef", "RAYCOMMEND_STORE_URL": "rediss://x"}
    for env in sorted(p.stem for p in ENVS.glob("*.yaml")):
        assert load(env=env, **secrets)
    assert contradictions(Settings(), environ={}) == []


def test_an_override_wins_over_the_environment_and_the_environment_over_the_default(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("serve: {http_port: 8123, default_deadline_ms: 900}\n")
    settings = load("serve.http_port=8124", "serve.http_port=8125", env=str(file))
    assert settings.serve.http_port == 8125 and settings.serve.default_deadline_ms == 900
    assert settings.serve.max_deadline_ms == Settings().serve.max_deadline_ms


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("serve.explainer.threads=2", lambda s: s.serve.explainer.threads, 2),
        ("cluster.artifacts_url=s3://bucket/a=b", lambda s: s.cluster.artifacts_url, "s3://bucket/a=b"),
        ("cluster.artifacts_url=", lambda s: s.cluster.artifacts_url, None),
        ("pipelines.train_ranker=false", lambda s: s.pipelines.train_ranker, False),
        ("models.retrieval.weights.semantic=0.5", lambda s: s.models.retrieval.weights.semantic, 0.5),
        ("serve.ranker={num_cpus: 0.5}", lambda s: s.serve.ranker.num_cpus, 0.5),
    ],
)
def test_an_override_is_read_as_yaml(override, read, value) -> None:
    assert read(load(override)) == value


def test_the_state_folder_is_made_absolute_before_anyone_changes_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load().state == tmp_path / ".raycommend"
    assert load("cluster.state=~/rc").state == Path.home() / "rc"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("serve.http_prot=1", ["serve.http_prot: no such setting", "did you mean http_port"]),
        ("serve.default_deadline_s=1", ["no such setting", "did you mean default_deadline_ms"]),
        ("serve.pipeline.rank.budget_s=1", ["serve.pipeline.rank.budget_s", "did you mean budget_ms"]),
        ("cluster.ray.object_store=1", ["did you mean object_store_bytes"]),
        ("modles.encoder.uri=x", ["modles: no such setting", "did you mean models"]),
        ("serve.zzzzzz=1", ["serve.zzzzzz: no such setting"]),
    ],
)
def test_an_unknown_key_is_named_with_what_was_probably_meant(override: str, words: list[str]) -> None:
    message = refused(override)
    assert all(w in message for w in words) and "1 problem " in message
    assert "zzzzzz" not in override or "did you mean" not in message


@pytest.mark.parametrize(
    "override",
    [
        "serve.http_port=80",
        "serve.http_port=http",
        "serve.http_port=70000",
        "serve.default_deadline_ms=0.8",
        "serve.default_deadline_ms=-1",
        "serve.pipeline.rank.budget_ms=0",
        "serve.max_body_bytes=2 MB",
        "serve.release_poll_s=.inf.",
        "serve.ranker.placement=thread",
        "serve.route_prefix=api",
        "cluster.ray.object_store_bytes=256",
        "cluster.store.mode=redis",
        "models.generator.niceness=30",
        "models.encoder.dimension=0",
        "pipelines.popularity_half_life_days=0",
        "serve.features=5",
    ],
)
def test_a_wrong_type_or_unit_is_named_by_its_path(override: str) -> None:
    assert f"- {override.split('=')[0]}: " in refused(override)


def test_every_problem_is_named_at_once_whatever_its_kind() -> None:
    message = refused(
        "serve.http_prot=1",
        "serve.http_port=eighty",
        "nonsense",
        "cluster.ray.cpus.x=1",
        "serve.pipeline.features.budget_ms=5000",
        "models.ranker.backend=text",
        "serve.host=0.0.0.0",
    )
    for words in (
        "serve.http_prot: no such setting",
        "serve.http_port: ",
        "--set nonsense",
        "cluster.ray.cpus",
        "stage budgets add up",
        "models.ranker.text_uri",
        "RAYCOMMEND_API_KEYS",
    ):
        assert words in message
    assert "7 problems" in message


CONTRADICTIONS = {
    "budgets beyond the deadline": (["serve.pipeline.rank.budget_ms=700"], "stage budgets add up to 1110 ms"),
    "default above the longest deadline": (["serve.max_deadline_ms=100"], "larger than serve.max_deadline_ms"),
    "a stage that never runs": (["serve.pipeline.rank.minimum_ms=400"], "serve.pipeline.rank: minimum_ms"),
    "fewer candidates than k": (["serve.pipeline.candidates=50"], "serve.pipeline.candidates is below 100"),
    "replicas upside down": (["serve.ranker.min_replicas=3"], "serve.ranker: min_replicas is larger"),
    "a target above the limit": (["serve.ranker.target_ongoing_requests=65"], "target_ongoing_requests is larger"),
    "an inline ingress": (["serve.ingress.placement=inline"], "serve.ingress.placement must be deployment"),
    "an inline explainer": (["serve.explainer.placement=inline"], "serve.explainer.placement must be deployment"),
    "an ingress that hangs": (["serve.max_in_flight=600"], "serve.ingress.max_ongoing_requests is smaller"),
    "too few CPUs": (["serve.ranker.num_cpus=9"], "CPUs, cluster.ray.cpus = 4"),
    "too few GPUs": (["serve.ranker.num_gpus=1"], "GPUs, cluster.ray.gpus = 0"),
    "one port twice": (["serve.http_port=6390"], "serve.http_port and cluster.store.port are both 6390"),
    "replica ports upside down": (["cluster.haproxy.replica_port_min=31000"], "must be below replica_port_max"),
    "open to all without keys": (["serve.host=0.0.0.0"], "set RAYCOMMEND_API_KEYS"),
    "a name that may be anywhere": (["serve.host=example.org"], "set RAYCOMMEND_API_KEYS"),
    "an external store without URL": (["cluster.store.mode=external"], "set RAYCOMMEND_STORE_URL"),
    "a cascade without model": (["models.ranker.cascade.candidates=20"], "models.ranker.cascade needs"),
    "a cascade behind itself": (
        ["models.ranker.cascade.candidates=20", "models.ranker.backend=text", "models.ranker.text_uri=/m"],
        "models.ranker.cascade needs",
    ),
    "more workers than lists": (["pipelines.text.workers=9"], "pipelines.text.workers = 9 is more than pipelines.text"),
    "hosts for fewer pieces": (
        ["serve.index_shards.hosts=3", "pipelines.index_pieces=2"],
        "serve.index_shards.hosts = 3 is more than pipelines.index_pieces = 2",
    ),
    "hosts without a retriever that asks them": (
        ["serve.index_shards.hosts=2", "pipelines.index_pieces=2", "serve.retriever.placement=inline"],
        "serve.retriever must have placement deployment",
    ),
    "too few CPUs for hosts": (
        ["serve.index_shards.hosts=2", "pipelines.index_pieces=2", "serve.index_shards.host.num_cpus=3"],
        "CPUs, cluster.ray.cpus = 4",
    ),
    "a text ranker without model": (["models.ranker.backend=text"], "models.ranker.text_uri"),
}


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], words: str) -> None:
    assert words in refused(*overrides)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert load(f"serve.host={host}")


def test_keys_that_no_replica_could_read_are_refused_before_anything_starts() -> None:
    message = refused(RAYCOMMEND_API_KEYS="main=0123456789abcdef,shop=Zebra77")
    assert "RAYCOMMEND_API_KEYS: API key 2" in message and "Zebra77" not in message


def test_a_tenant_without_releases_and_a_short_signing_key_are_refused_at_start() -> None:
    message = refused(
        RAYCOMMEND_API_KEYS="main=0123456789abcdef,shop=0123456789abcdeg", RAYCOMMEND_SIGNING_KEY="Zebra77"
    )
    assert "releases are built for tenant main only, not for shop" in message
    assert "RAYCOMMEND_SIGNING_KEY is shorter than 16 characters" in message
    assert "Zebra77" not in message and "0123456789abcde" not in message


def test_inline_stages_and_external_stores_are_allowed_where_they_make_sense() -> None:
    for stage in ("features", "encoder", "retriever", "ranker"):
        assert load(f"serve.{stage}.placement=inline")
    assert load("cluster.store.mode=external", "serve.http_port=6390", RAYCOMMEND_STORE_URL="redis://x")


@pytest.mark.parametrize(
    "override", ["", "=1", "serve", ".=1", "serve..x=1", "serve.http_port=[1", "serve.http_port=: :"]
)
def test_an_override_that_cannot_be_read_is_quoted(override: str) -> None:
    assert "--set" in refused(override)


def test_an_unknown_environment_lists_those_there_are(tmp_path) -> None:
    message = refused(env="staging")
    assert "local" in message and "prod" in message
    for text, words in (("serve: [", "not YAML"), ("- a\n- b\n", "want a mapping")):
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        assert words in refused(env=str(file)) and str(tmp_path) not in refused(env=str(file)).split("(env")[0]
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert load(env=str(empty)) == load()


def test_settings_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValidationError):
        Settings().serve.http_port = 1


def test_the_tree_can_be_written_down_and_read_back(tmp_path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(yaml.safe_dump(load().model_dump(mode="json")))
    assert load(env=str(file)) == load()


@pytest.mark.parametrize(("path", "model"), list(sections()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_setting_says_what_it_does_and_no_section_takes_unknown_keys(path: str, model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid" and model.model_config["frozen"]
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    [body] = [n.body for n in tree.body if isinstance(n, ast.ClassDef)]
    documented = {
        node.target.id
        for node, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
    assert set(model.model_fields) == documented, f"{path or 'the root'}: undocumented settings"


def test_numbers_carry_their_unit_in_their_name() -> None:
    words = ("deadline", "timeout", "budget", "poll", "half_life", "delay", "memory")
    units = ("_ms", "_s", "_bytes", "_gib", "_tokens", "_days", "_events", "_share")
    wrong = [
        f"{path}.{name}"
        for path, model in sections()
        for name, field in model.model_fields.items()
        if any(w in name for w in words) and field.annotation in (int, float) and not name.endswith(units)
    ]
    assert not wrong


def test_what_is_told_at_the_start_is_what_differs_from_the_defaults() -> None:
    usual = Settings().model_dump(mode="json")
    assert differences(usual, usual) == []
    overrides = ["serve.http_port=8123", "models.retrieval.weights.semantic=0.7"]
    changed = load_settings("local", overrides, environ=None).model_dump(mode="json")
    told = dict(differences(changed, usual))
    assert told["serve.http_port"] == 8123
    assert told["models.retrieval.weights.semantic"] == 0.7
    assert all(usual_value(usual, name) != value for name, value in told.items())


def usual_value(tree: dict, name: str) -> object:
    for part in name.split("."):
        tree = tree[part]
    return tree
