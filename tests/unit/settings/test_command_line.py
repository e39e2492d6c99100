"""The command line where it needs no cluster: help, sentences instead of tracebacks, exit codes, JSON."""

import json
import shlex
import signal

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from cluster import operating
from cluster.cli import app
from cluster.config import load_settings
from cluster.workspace import Workspace
from loadtests.bench import registry
from loadtests.bench.harness import BenchContext

COMMANDS = (
    "demo",
    "up",
    "down",
    "status",
    "import",
    "build",
    "reembed",
    "train",
    "rollback",
    "manifest",
    "recommend",
    "ingest",
    "evaluate",
    "explain",
    "bench",
)


@pytest.fixture(autouse=True)
def _signals_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(tmp_path, free_port, monkeypatch):
    """Run a command in an empty state folder, with an API port nobody listens on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    here = ["--set", f"cluster.state={tmp_path / 'state'}", "--set", f"serve.http_port={free_port}"]

    def invoke(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, [command, *here, *arguments])

    return invoke


def sentence(result: Result) -> str:
    """Check that the command ended with one sentence and exit code 1, not with a traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "error: " in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_takes_env_set_and_json(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert all(option in result.stdout for option in ("--env", "--set", "--json"))


def test_without_a_command_the_help_lists_them_all() -> None:
    result = CliRunner().invoke(app, [])
    assert all(command in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", ["status", "down", "build", "recommend", "up", "demo"])
def test_a_bad_setting_is_a_sentence_and_nothing_is_touched(run, tmp_path, command: str) -> None:
    assert "serve.http_prot: no such setting; did you mean http_port?" in sentence(
        run(command, "--set", "serve.http_prot=1")
    )
    assert not (tmp_path / "state").exists()


def test_an_unknown_environment_is_a_sentence(run) -> None:
    assert "no such environment; there is local, prod" in sentence(run("status", "--env", "staging"))


@pytest.mark.parametrize("text", ["serve[/red]=1", "[bold]x=1", "serve.host=[/]", "a[b]c"])
def test_square_brackets_in_a_mistake_are_printed_as_they_are(run, text: str) -> None:
    message = sentence(run("status", "--set", text))
    assert text.split("=")[0] in message


def test_importing_something_unknown_lists_what_there_is(run) -> None:
    message = sentence(run("import", "netflix"))
    assert "no importer netflix" in message and "movielens-100k" in message and "generic" in message


def test_an_import_says_which_option_it_needs_or_does_not_take(run, tmp_path) -> None:
    assert "--items" in sentence(run("import", "generic"))
    (tmp_path / "x").write_text("{}")
    assert "--events" in sentence(run("import", "movielens-small", "--path", "x", "--events", "x"))


def test_a_generic_import_prints_its_counts_as_json(run, tmp_path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "a", "title": "A"}\n{"id": "b", "title": "B"}\n')
    (tmp_path / "events.jsonl").write_text('{"user": "u", "item": "a", "type": "view", "time": 1700000000000}\n')
    result = run("import", "generic", "--items", "items.jsonl", "--events", "events.jsonl", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout.splitlines()[-1])
    assert body["ok"] and (body["items"], body["events"]) == (2, 1)


def test_a_generic_import_of_bad_rows_fails_with_their_numbers(run, tmp_path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "a", "title": "A"}\n{"id": "b b", "title": "B"}\nnot json\n')
    (tmp_path / "events.jsonl").write_text("")
    message = sentence(run("import", "generic", "--items", "items.jsonl", "--events", "events.jsonl"))
    assert ("2" in message and "--max-bad-rows" in message) or "max_bad_rows" in message


def test_building_without_a_data_set_names_the_import_command(run) -> None:
    assert "raycommend import movielens-100k" in sentence(run("build"))


def test_a_data_set_that_was_damaged_is_a_sentence_too(run, tmp_path) -> None:
    folder = tmp_path / "state" / "data" / "movielens-100k"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{")
    assert "import it again" in sentence(run("build"))


@pytest.mark.parametrize("error", operating.FIXABLE)
def test_every_error_that_names_its_fix_is_a_sentence(error, capsys) -> None:
    with pytest.raises(typer.Exit) as ended, operating.operating("local", None):
        raise error("free the port [6390]")
    assert ended.value.exit_code == 1 and "error: free the port [6390]" in capsys.readouterr().err


def test_a_bug_is_a_traceback_and_an_interrupt_an_orderly_end(capsys) -> None:
    with pytest.raises(ZeroDivisionError), operating.operating("local", None):
        _ = 1 / 0
    with pytest.raises(typer.Exit) as ended, operating.operating("local", None):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.exit_code == 0 and "stopped" in capsys.readouterr().err


def test_status_says_that_nothing_runs_and_exits_with_3(run) -> None:
    result = run("status")
    assert result.exit_code == 3 and "not running" in result.stdout
    result = run("status", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"running": False, "ready": False, "processes": []}


def test_down_with_nothing_to_end_is_a_success(run) -> None:
    assert run("down").exit_code == 0
    assert json.loads(run("down", "--json").stdout) == {"ok": True, "ended": []}


def test_asking_without_a_server_names_the_command_that_starts_one(run) -> None:
    for explain in ("--explain", "--no-explain"):
        assert "raycommend up" in sentence(run("recommend", "--user", "u1", explain))


def test_options_out_of_range_are_refused_by_name(run) -> None:
    for arguments in (("recommend", "--k", "0"), ("recommend", "--k", "ten"), ("evaluate", "--seeds", "9")):
        result = run(*arguments)
        assert result.exit_code == 2 and arguments[1] in result.output


def test_the_benchmarks_are_listed(run) -> None:
    from loadtests.bench.registry import BENCHES

    result = run("bench", "list")
    assert result.exit_code == 0 and all(name in result.stdout for name in BENCHES)


def test_a_benchmark_s_options_are_checked_before_it_runs(run) -> None:
    assert "--rate 50" in sentence(run("bench", "http", "rate"))
    assert "takes the folder" in sentence(run("bench", "verify"))


class _Wish(BaseModel):
    size: int = 1
    rate_rps: float = 1.0
    quick: bool = False


def _record(context: BenchContext) -> None:
    context.options(_Wish)
    context.target("figure", "array_mean", context.save_array("figures", [1.0]))


def test_a_recorded_command_is_one_that_runs_and_asks_for_the_same(run, monkeypatch) -> None:
    monkeypatch.setitem(registry.BENCHES, "wish", registry.Bench("wish", f"{__name__}:_record", "a test"))
    stamps = []
    words = ["--rate-rps", "2.5", "--quick", "--size=3", "--rounds", "4"]
    for _ in range(2):
        result = run("bench", "wish", *words, "--json")
        assert result.exit_code == 0, result.output
        figure = json.loads(result.stdout)["targets"]["figure"]
        stamps.append((figure["command"], figure["settings_hash"]))
        words = shlex.split(figure["command"])[3:]
    assert stamps[0] == stamps[1]
    assert stamps[0][0].endswith("--rounds 4 --option quick=true --option rate_rps=2.5 --option size=3")
    assert "looks like" in sentence(run("bench", "wish", "--option", "size"))


def test_an_imported_data_set_is_found_again_by_the_name_of_its_importer(run, tmp_path) -> None:
    (tmp_path / "films.jsonl").write_text('{"id": "1", "title": "A"}\n')
    (tmp_path / "clicks.jsonl").write_text('{"user": "u", "item": "1", "type": "click", "time": 1700000000000}\n')
    result = run("import", "generic", "--items", "films.jsonl", "--events", "clicks.jsonl", "--json")
    assert result.exit_code == 0, result.output
    settings = load_settings("local", [f"cluster.state={tmp_path / 'state'}"])
    # A release notes this name, and `up` opens the data set by it.
    assert Workspace(settings).dataset("generic").name == json.loads(result.stdout)["name"] == "generic"


def test_the_list_of_benchmarks_is_json_where_it_is_asked_for(run) -> None:
    result = run("bench", "list", "--json")
    assert {"client", "http", "quality"} <= {one["name"] for one in json.loads(result.stdout)["benches"]}


@pytest.mark.parametrize("command", ["status", "down"])
def test_a_state_folder_that_cannot_be_made_is_a_sentence(run, tmp_path, command: str) -> None:
    (tmp_path / "file").write_text("in the way")
    message = sentence(run(command, "--set", f"cluster.state={tmp_path / 'file' / 'state'}"))
    assert "cannot be made (Not a directory): choose another folder" in message


@pytest.mark.parametrize("wish", [(), ("--warm", "--summaries", "x.parquet"), ("--warm", "--reviews", "x")])
def test_explain_does_one_thing_at_a_time(run, wish: tuple[str, ...]) -> None:
    done = run("explain", *wish)
    assert done.exit_code == 1 and "--warm" in done.stderr and "--summaries FILE" in done.stderr


def test_nothing_can_be_explained_before_there_is_a_release_or_a_deployment(run) -> None:
    assert "raycommend up" in run("explain", "--warm").stderr
    assert "raycommend import" in sentence(run("explain", "--reviews", "generic"))
    done = run("explain", "--summaries", "x.parquet", "--json")
    assert done.exit_code == 1 and "raycommend build" in json.loads(done.stdout)["error"]
