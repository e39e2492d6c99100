"""`raycommend train` over a state folder: what is published, what is not, and what it says."""

import shutil

import numpy as np
import pytest

from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.prepare import keep_release
from models.bundle import load_bundle
from models.catalog import ItemCatalog
from models.consumer.event_log import write_entries
from models.events import Event, EventType
from models.rankers.second import SECOND_RANKER
from models.releases import new_release
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from models.store.streams import StreamEntry
from pipelines.text_maker import TextTraining


def settings_of(place):
    return load_settings("local", place, environ={})


def test_training_publishes_a_release_then_finds_nothing_new_then_goes_on_from_live_events(
    place, make_taste_log, imported, run
):
    log = make_taste_log(160)
    workspace = imported(place, log)
    result, first = run(place, "train")
    assert result.exit_code == 0, result.output
    assert first["outcome"] == "published" and first["parent"] is None
    assert first["window_ms"] == [int(log.timestamps_ms[0]), int(log.timestamps_ms[-1])]
    latest = workspace.releases().latest()
    assert latest.release_id == first["release"] and latest.artifacts["ranker"] == first["ranker"]
    assert not list(workspace.training.glob("*"))

    result, same = run(place, "train")
    assert result.exit_code == 0 and same["outcome"] == "unchanged" and same["reused"]
    result, none = run(place, "train", "--incremental")
    assert result.exit_code == 0 and none["outcome"] == "unchanged"
    assert workspace.releases().latest().release_id == first["release"]

    # Events on items that nobody knows are nothing to go on from, and nothing that changed.
    strangers = [Event(f"x{n}", "u1", EventType.rating, 2 * int(log.timestamps_ms[-1]), f"x{n}", 4.0) for n in range(9)]
    write_entries(
        workspace.events / "main", [(1, StreamEntry(f"{e.timestamp_ms}-{e.item_id[1:]}", e)) for e in strangers]
    )
    for options in ((), ("--incremental",)):
        result, none = run(place, "train", *options)
        assert (result.exit_code, none["outcome"]) == (0, "unchanged")
    assert len(list(workspace.artifacts().list("ranker"))) == 1

    live = live_events(workspace, users=80, after_ms=int(log.timestamps_ms[-1]))
    result, on = run(place, "train", "--incremental")
    assert on["parent"] == first["ranker"], on
    assert on["metrics"]["since_ms"] == first["window_ms"][1]
    assert on["window_ms"] == [first["window_ms"][0], live]
    assert (result.exit_code, on["outcome"]) in {(0, "published"), (4, "lost")}
    now = workspace.releases().latest()
    assert now.artifacts["ranker"] == (on["ranker"] if on["outcome"] == "published" else first["ranker"])


def live_events(workspace, *, users, after_ms):
    """Write what the consumer of a running deployment would have written, and return the last time."""
    rng = np.random.default_rng(1)
    entries, at = [], after_ms
    for user in range(users):
        for item in rng.permutation(np.arange(user % 5, 100, 5))[:6]:
            at += 1000
            event = Event(f"e{at}", f"u{user}", EventType.rating, at, f"i{item}", 4.0)
            entries.append((user % 7, StreamEntry(f"{at}-0", event)))
    write_entries(workspace.events / "main", entries)
    return at


def test_a_ranker_that_loses_is_kept_but_not_published_and_the_exit_code_says_so(place, make_taste_log, imported, run):
    workspace = imported(place, make_taste_log(160))
    _, first = run(place, "train")
    served = workspace.releases().latest().release_id
    [training] = [override for override in place if override.startswith("pipelines.training=")]
    weak = training.replace("epochs: 1", "epochs: 0").replace("train_positions: 4", "train_positions: 1")
    assert weak.count("epochs: 0") == weak.count("train_positions: 1") == 1
    result, lost = run(place, "train", sets=[weak])
    assert result.exit_code == 4
    assert lost["ok"] is False and lost["outcome"] == "lost" and "served now" in lost["said"]
    assert lost["metrics"]["fused_vs_incumbent"]["mean"] < 0
    assert lost["parent"] == first["ranker"] and lost["ranker"] in workspace.artifacts().list("ranker")
    assert workspace.releases().latest().release_id == served


def test_one_user_is_too_little_to_learn_from_and_nothing_is_published(place, make_taste_log, imported, run):
    log = make_taste_log(5)
    workspace = imported(place, log.take(log.user_ids == "u0"))
    result, lost = run(place, "train")
    assert result.exit_code == 4 and "min_examples" in lost["said"]
    assert workspace.releases().latest() is None


def test_going_on_without_a_ranker_is_one_sentence(place, make_taste_log, imported, run):
    imported(place, make_taste_log(5))
    result, answer = run(place, "train", "--incremental")
    assert result.exit_code == 1 and "leave it out" in answer["error"]


@pytest.fixture
def start(tmp_path, tiny_bert):
    return tiny_bert(tmp_path / "start", ["film", "liked", "red", "blue", *(f"g{n}" for n in range(5))])


def test_a_text_ranker_is_trained_published_loaded_and_distilled_by_the_same_command(
    place, make_taste_log, start, imported, run
):
    workspace = imported(place, make_taste_log(160))
    quick = "{steps: 6, lists_per_step: 4, max_tokens: 32, list_size: 20, validation_cases: 60, frozen_layers: 0"
    sets = [f"pipelines.text={quick}, start_uri: {start}}}"]
    result, first = run(place, "train", "--kind", "text", sets=sets)
    assert first["kind"] == "text" and first["metrics"]["steps"] == 6, result.output
    assert {"text_vs_retrieval", "fused_vs_retrieval", "training_s"} <= set(first["metrics"])
    assert (result.exit_code, first["outcome"]) == (0, "published"), first["said"]
    unshown = first["metrics"]["fused_vs_without_text"]["lower"] <= 0
    assert ("that reading texts brings anything is not shown" in " ".join(result.output.split())) == unshown
    bundle = load_bundle(workspace.artifacts(), workspace.releases().latest(), settings=RetrievalSettings())
    query = RetrievalQuery(n=10, now_ms=10**12, seed_items=("i1",))
    assert np.isfinite(bundle.ranker.score(query, bundle.engine.retrieve(query))).all()
    result, small = run(place, "train", "--kind", "text", "--student", "1", sets=sets)
    assert small["parent"] == first["ranker"] and small["metrics"]["layers"] == 1
    result, answer = run(place, "train", "--incremental", sets=sets)
    assert result.exit_code == 1 and "that is a text one" in answer["error"]


def test_no_second_text_ranker_stands_behind_a_trained_one(place, make_taste_log, start, imported, run):
    workspace = imported(place, make_taste_log(160))
    quick = "{steps: 6, lists_per_step: 4, max_tokens: 32, list_size: 20, validation_cases: 60, frozen_layers: 0"
    sets = [f"pipelines.text={quick}, start_uri: {start}}}"]
    sets += [f"models.ranker.text_uri={start}", "models.ranker.cascade.candidates=8"]
    result, made = run(place, "train", "--kind", "text", sets=sets)
    assert (result.exit_code, made["outcome"]) == (0, "published"), result.output
    release = workspace.releases().latest()
    assert release.artifacts["ranker"] == made["ranker"]
    assert SECOND_RANKER not in release.artifacts and "cascade" not in release.notes


def test_a_text_training_that_goes_on_takes_gentler_steps_in_every_part(place, tmp_path):
    of = settings_of([*place, "pipelines.text={learning_rate: 1.0e-5, head_learning_rate: 1.0e-3}"]).pipelines
    maker = TextTraining(of, RetrievalSettings(), "start", lambda: tmp_path, since_ms=1)
    made = maker.inputs(ItemCatalog.of([]))["text"]
    assert made["learning_rate"] == pytest.approx(3e-6) and made["head_learning_rate"] == pytest.approx(3e-4)


def test_a_share_of_a_cpu_decides_nothing_about_the_ranker(place, tmp_path):
    def inputs(*sets):
        of = settings_of([*place, *sets]).pipelines
        return TextTraining(of, RetrievalSettings(), "start", lambda: tmp_path).inputs(ItemCatalog.of([]))

    assert inputs("pipelines.text.cpus_per_worker=0.1") == inputs("pipelines.text.cpus_per_worker=2")
    assert inputs("pipelines.text.steps=9") != inputs()


def test_a_student_without_a_teacher_is_one_sentence(place, make_taste_log, imported, run):
    imported(place, make_taste_log(5))
    result, answer = run(place, "train", "--kind", "text", "--student", "2")
    assert result.exit_code == 1 and "there is none" in answer["error"]
    result, answer = run(place, "train", "--student", "2")
    assert result.exit_code == 1 and "--kind text" in answer["error"]


def test_a_served_ranker_that_does_not_match_its_manifest_is_refused_and_stays_where_it_is(
    place, make_taste_log, imported, run
):
    workspace = imported(place, make_taste_log(160))
    _, first = run(place, "train")
    artifact = workspace.artifacts().get(first["ranker"])
    weights = artifact.path / "ranker.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    result, answer = run(place, "train", sets=["pipelines.seed=1"])
    assert result.exit_code == 1 and "ranker.safetensors is truncated or damaged" in answer["error"]
    assert workspace.releases().latest().release_id == first["release"]


def test_a_release_whose_ranker_does_not_match_its_manifest_is_not_kept_and_the_old_one_stays(
    place, make_taste_log, tmp_path, imported, run
):
    workspace = imported(place, make_taste_log(160))
    _, first = run(place, "train")
    before = workspace.releases().latest()
    copy = tmp_path / "copy"
    shutil.copytree(workspace.artifacts().get(first["ranker"]).path, copy)
    ref = workspace.artifacts().put("ranker", copy, {"metrics": {"switch_on": True}})
    weights = workspace.artifacts().get(ref).path / "ranker.safetensors"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    changed = new_release({**before.artifacts, "ranker": ref}, dataset="taste")
    with pytest.raises(OperatorError, match=r"ranker\.safetensors is truncated or damaged"):
        keep_release(settings_of(place), changed)
    assert workspace.releases().latest().release_id == before.release_id
    bundle = load_bundle(workspace.artifacts(), before, settings=RetrievalSettings())
    assert bundle.ranker.score_kind == "probability"
