"""A cascade that is served is the one to beat as a whole, when one of its two rankers is made anew."""

from dataclasses import replace

import pytest

from cluster.train import _lost
from models.artifacts import ArtifactStore
from models.behaviour.behaviour import BehaviourSettings
from models.rankers.compressed import CompressedModel
from models.rankers.second import SECOND_RANKER
from models.rankers.settings import CascadeSettings, RankerSettings
from models.releases import new_release
from models.retrieval.settings import RetrievalSettings
from pipelines.second_ranker import Served, take_second_ranker
from pipelines.training.settings import TrainingSettings
from pipelines.training.train import train_ranker

QUICK = {"train_positions": 4, "validation_positions": 2, "epochs": 1, "list_size": 60, "bootstrap_rounds": 200}


@pytest.fixture
def model(tmp_path, tiny_bert):
    words = ["film", "liked", "red", "blue", *(f"g{n}" for n in range(5))]
    return tiny_bert(tmp_path / "text", words, layers=1)


@pytest.fixture
def served(place, imported, make_taste_log, model):
    """A state folder in which a cascade is to be served: a trained first ranker, and a text ranker behind it."""
    sets = [
        *place,
        f"models.ranker.text_uri={model}",
        "models.ranker.cascade.candidates=5",
        "pipelines.text_validation_cases=30",
    ]
    return sets, imported(sets, make_taste_log(160), years=False)


def test_a_new_first_ranker_is_compared_with_the_cascade_and_a_text_one_is_refused(served, model, run) -> None:
    sets, workspace = served
    result, first = run(sets, "train")
    assert (result.exit_code, first["outcome"]) == (0, "published"), result.output
    assert "vs_served" not in first["cascade"], "no cascade was served before"
    # Whatever the tiny text model brings: from here on it is behind the first one.
    ref = workspace.artifacts().put(SECOND_RANKER, model, {})
    latest = workspace.releases().latest()
    both = new_release({**latest.artifacts, SECOND_RANKER: ref}, **latest.notes)
    workspace.releases().save(both)

    result, text = run(sets, "train", "--kind", "text")
    assert result.exit_code == 1 and "train --kind compressed" in text["error"]
    assert workspace.releases().latest().release_id == both.release_id

    result, same = run(sets, "train")
    assert same["outcome"] == "unchanged" and "vs_served" not in same.get("cascade", {})

    result, new = run(sets, "train", sets=["pipelines.seed=3"])
    assert new["parent"] == first["ranker"] and new["ranker"] != first["ranker"]
    if new["metrics"]["switch_on"]:
        lost = new["cascade"]["vs_served"]["mean"] < 0
        assert (new["outcome"], result.exit_code) == (("lost", 4) if lost else ("published", 0))
        assert not lost or "the cascade served now" in new["said"]
    else:
        assert new["outcome"] == "lost"


def test_what_loses_to_the_served_cascade_is_told_apart_from_what_does_not(
    tmp_path, make_catalog, patterned_log, model
) -> None:
    catalog, embeddings = make_catalog(100)
    log, artifacts = patterned_log, ArtifactStore(str(tmp_path / "a"), cache=tmp_path / "c")
    (tmp_path / "good").mkdir()
    settings = TrainingSettings(**QUICK, min_examples=10)
    train_ranker(log, catalog, embeddings, tmp_path / "good", settings=settings)
    good = CompressedModel.read(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    upside_down = {name: -tensor if name.startswith("head.") else tensor for name, tensor in good.parameters.items()}
    upside_down |= {name: good.parameters[name] for name in ("head.mean", "head.scale", "head.in", "head.in_bias")}
    replace(good, parameters=upside_down, calibration=None).save(tmp_path / "bad")
    second = artifacts.put(SECOND_RANKER, model, {})
    served = {
        name: Served(artifacts.get(artifacts.put("ranker", tmp_path / name, {})), artifacts.get(second))
        for name in ("good", "bad")
    }

    def compared(first: str, with_: Served | None):
        (folder := tmp_path / f"made-{first}").mkdir(exist_ok=True)
        return take_second_ranker(
            model,
            tmp_path / first,
            log,
            catalog,
            embeddings,
            folder,
            ranking=RankerSettings(cascade=CascadeSettings(candidates=5, weight=0.0)),
            retrieval=RetrievalSettings(),
            behaviour=BehaviourSettings(),
            half_life_days=14.0,
            cases=60,
            seed=0,
            served=with_,
        )

    worse, better = compared("bad", served["good"]), compared("good", served["bad"])
    assert worse["vs_served"]["mean"] < 0 < better["vs_served"]["mean"]
    assert worse["served_ndcg10"] == pytest.approx(better["first_ndcg10"])
    assert "vs_served" not in compared("good", None)
    on = {"switch_on": True, "reason": ""}
    assert "below the cascade served now" in _lost(on, worse)
    assert _lost(on, better) == _lost(on, {}) == ""
    assert _lost({"switch_on": False, "reason": "why"}, better) == "why"
