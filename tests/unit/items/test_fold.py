"""The item log folded into a new release: the same items as a replica shows before, and nothing lost between folds."""

from __future__ import annotations

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.encoder import HashEncoder
from models.items.change import ItemChange
from models.items.folded import FOLDED_FILE, read_folded
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.fold import Fold
from pipelines.settings import PipelinesSettings

NOW = 1_700_000_000_000
CHANGES = [
    (1, ItemChange("put", "new", NOW, "A new film", "water", {"genre": ("Drama",), "year": 2026.0})),
    (2, ItemChange("patch", "i03", NOW, title="Film 3 renamed", attributes={"year": None})),
    (3, ItemChange("remove", "i04", NOW)),
    (4, ItemChange("patch", "i05", NOW, hidden=True)),
    (5, ItemChange("patch", "nobody", NOW, title="not there")),
    (6, ItemChange("patch", "i06", NOW, available=False)),
    (7, None),
    (8, ItemChange("put", "gone", NOW, "Gone again")),
    (9, ItemChange("remove", "gone", NOW)),
]


class Shop:
    def __init__(self, folder, dataset: Dataset) -> None:
        self.artifacts = ArtifactStore(str(folder / "artifacts"), cache=folder / "cache")
        self.dataset = dataset

    def build(self, fold: Fold | None = None) -> ReleaseBundle:
        builder = Builder(
            self.artifacts,
            settings=PipelinesSettings(train_ranker=False),
            retrieval=RetrievalSettings(),
            encoder=lambda: HashEncoder(16),
            encoder_uri="hash",
        )
        return self.load(builder.run(self.dataset, fold=fold).release)

    def load(self, release) -> ReleaseBundle:
        return load_bundle(self.artifacts, release, settings=RetrievalSettings(), encoder="hash")


@pytest.fixture
def shop(tmp_path, items_of, log_of) -> Shop:
    return Shop(tmp_path, Dataset("tiny", items_of(12), log_of(users=6, each=5, items=12)))


def shown(bundle: ReleaseBundle) -> dict[str, tuple[str, dict, dict]]:
    catalog = bundle.catalog
    rows = [r for r in range(len(catalog)) if not bundle.withheld[r]]
    return {catalog.item_id(r): (catalog.title(r), catalog.labels(r), catalog.numbers(r)) for r in rows}


def test_a_release_shows_what_replicas_showed_before_it(shop) -> None:
    live = shop.build().with_changes(CHANGES)
    folded = shop.build(Fold().after(CHANGES, shop.dataset))
    assert shown(folded) == shown(live)
    assert "new" in shown(folded) and not {"i04", "i05", "i06", "gone"} & shown(folded).keys()
    assert folded.release.item_log_seq == folded.item_sequence == 9


def test_hidden_items_stay_hidden_and_a_patch_shows_them_again(shop) -> None:
    folded = shop.build(Fold().after(CHANGES, shop.dataset))
    assert folded.catalog.row("i05") is not None and folded.hidden(folded.catalog.row("i05"))
    renamed = folded.with_changes([(10, ItemChange("patch", "i05", NOW, title="Still hidden"))])
    assert "i05" not in shown(renamed)
    back = renamed.with_changes([(11, ItemChange("patch", "i05", NOW, hidden=False))])
    assert shown(back)["i05"][0] == "Still hidden"
    assert len(folded.engine.retrieve(RetrievalQuery(n=20, now_ms=NOW))) > 0


def test_folding_twice_gives_what_folding_once_gives_though_the_log_was_cut(shop) -> None:
    first = shop.build(Fold().after(CHANGES[:4], shop.dataset))
    kept = Fold(first.release.item_log_seq, read_folded(first.folders["catalog"]))
    second = shop.build(kept.after(CHANGES[4:], shop.dataset))
    once = shop.build(Fold().after(CHANGES, shop.dataset))
    assert second.release.release_id == once.release.release_id


def test_what_was_removed_stays_removed_in_later_builds_until_it_is_put_again(shop) -> None:
    first = shop.build(Fold().after(CHANGES, shop.dataset))
    kept = Fold(9, read_folded(first.folders["catalog"]))
    again = kept.after([(10, ItemChange("patch", "i04", NOW, title="no")), (11, None)], shop.dataset)
    assert "i04" not in shown(shop.build(again))
    assert "i04" in shown(shop.build(again.after([(12, ItemChange("put", "i04", NOW, "Back"))], shop.dataset)))


def test_a_new_item_that_nobody_took_is_as_fresh_as_when_it_appeared(shop) -> None:
    folded = shop.build(Fold().after([(1, ItemChange("put", "new", NOW + 5, "New"))], shop.dataset))
    row = folded.catalog.row("new")
    assert folded.statistics.first_ms[row] == NOW + 5
    others = np.delete(np.asarray(folded.statistics.first_ms), row)
    assert np.array_equal(others, shop.build().statistics.first_ms)


def test_without_changes_nothing_is_made_anew(shop) -> None:
    assert shop.build().release.release_id == shop.build(Fold()).release.release_id


def test_a_damaged_list_of_changed_items_is_refused_by_name(tmp_path) -> None:
    (tmp_path / FOLDED_FILE).write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"live\.jsonl"):
        read_folded(tmp_path)
