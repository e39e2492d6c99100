"""The body of `reembed` from a data set or a catalog to a release that is kept; Ray Data's part is done right here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import reembed as job
from cluster.config import Settings, load_settings
from cluster.operating import FIXABLE
from cluster.reembed import Wish, reembed
from cluster.workspace import Workspace
from models.bundle import EMBEDDINGS_FILE
from models.catalog import Item, ItemCatalog
from models.encoder import HashEncoder
from models.vectors import open_vectors
from pipelines.build import BuildReport
from pipelines.dataset import Dataset, write_dataset

# Ray Data warns of its own defaults when its settings are made.
pytestmark = pytest.mark.filterwarnings(r"ignore:.* is deprecated:DeprecationWarning:ray\.data\.context")


class RowsHere:
    """The fake of a Ray data set: rows in this process, in order; actors are made when rows are asked for."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self._rows = rows

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], *, override_num_blocks: int) -> RowsHere:
        return cls(iter(rows))

    def flat_map(self, function: Callable[[dict[str, Any]], Any]) -> RowsHere:
        return RowsHere(made for row in self._rows for made in function(row))

    def map_batches(
        self, actor: type, *, fn_constructor_args: tuple[Any, ...], batch_size: int, **resources: Any
    ) -> RowsHere:
        assert batch_size == 1

        def run() -> Iterator[dict[str, Any]]:
            made = actor(*fn_constructor_args)
            for row in self._rows:
                batch = made({name: np.array([value], object) for name, value in row.items()})
                yield {name: values[0] for name, values in batch.items()}

        return RowsHere(run())

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return self._rows


class Counting(HashEncoder):
    """Notes the texts of items that it embeds; `turned` is what it is after its weights were mended."""

    def __init__(self) -> None:
        super().__init__(16)
        self.texts: list[str] = []
        self.turned = False

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += [text for text in texts if text != "warm up"]
        return np.roll(super().encode(texts), 1, axis=1) if self.turned else super().encode(texts)


@dataclass
class Place:
    """A state folder with an imported data set, and runs of `reembed` in it."""

    settings: Settings
    encoder: Counting

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.settings)

    def imported(self, dataset: Dataset) -> Dataset:
        write_dataset(dataset, self.workspace.dataset_folder())
        return dataset

    def run(self, **wish: Any) -> tuple[BuildReport, dict[str, Any]]:
        self.encoder.texts.clear()
        return reembed(self.settings, Wish(**wish))

    def vectors(self, report: BuildReport) -> npt.NDArray[np.float32]:
        folder = self.workspace.artifacts().get(report.release.artifacts["embeddings"]).path
        return np.asarray(open_vectors(folder / EMBEDDINGS_FILE))

    def catalog(self, report: BuildReport) -> ItemCatalog:
        return ItemCatalog(self.workspace.artifacts().get(report.release.artifacts["catalog"]).path)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    overrides = {
        "cluster.state": tmp_path / "state",
        "cluster.dataset": "films",
        "models.encoder.uri": "hash",
        "models.encoder.dimension": 16,
        "pipelines.train_ranker": False,
    }
    encoder = Counting()
    monkeypatch.setattr(job, "job_ray", lambda settings, *, say: nullcontext())
    monkeypatch.setattr("ray.data.from_items", RowsHere.of)
    monkeypatch.setattr("ray.available_resources", dict)
    monkeypatch.setattr(job, "load_encoder", lambda folder, **_: encoder)
    monkeypatch.setattr(Workspace, "encoder_folder", lambda self, **_: tmp_path)
    return Place(load_settings("local", [f"{n}={v}" for n, v in overrides.items()], environ={}), encoder)


@pytest.fixture
def films(place, items_of, log_of) -> Dataset:
    return place.imported(Dataset("films", items_of(40), log_of()))


def made(report: BuildReport) -> list[str]:
    return [step.name for step in report.steps if not step.reused]


def test_a_first_run_embeds_every_item_and_keeps_the_release_and_a_second_one_computes_nothing(place, films) -> None:
    first, facts = place.run()
    assert len(place.encoder.texts) == 40 and made(first)[:2] == ["catalog", "embeddings"]
    assert facts["embed"]["items"] == 40 and "warm_items_per_s" in facts
    assert place.workspace.newest_release() == first.release
    expected = HashEncoder(16).encode([place.catalog(first).document(row) for row in range(40)])
    assert np.array_equal(place.vectors(first), expected)
    second, facts = place.run()
    assert (place.encoder.texts, made(second), facts) == ([], [], {"warm_items_per_s": None})
    assert second.release.release_id == first.release.release_id
    assert place.workspace.newest_release() == second.release


def test_only_what_changed_is_embedded_unless_all_of_it_is_asked_for(place, films) -> None:
    first, _ = place.run()
    changed = [replace(item, title=f"New {n}") if n in (3, 17) else item for n, item in enumerate(films.items)]
    place.imported(replace(films, items=changed))
    place.encoder.turned = True
    some, facts = place.run()
    assert [text.splitlines()[0].partition(".")[0] for text in sorted(place.encoder.texts)] == ["New 17", "New 3"]
    assert facts["embed"]["items"] == 2
    same = [row for row in range(40) if row not in (3, 17)]
    assert np.array_equal(place.vectors(some)[same], place.vectors(first)[same])
    every, facts = place.run(full=True)
    assert len(place.encoder.texts) == 40 and facts["embed"]["items"] == 40
    documents = [place.catalog(every).document(row) for row in range(40)]
    assert np.array_equal(place.vectors(every), np.roll(HashEncoder(16).encode(documents), 1, axis=1))
    assert "embeddings" in made(every) and "catalog" not in made(every)
    assert place.workspace.newest_release() == every.release


def test_all_is_computed_again_also_where_nothing_changed(place, films) -> None:
    first, _ = place.run()
    again, _ = place.run(full=True)
    assert len(place.encoder.texts) == 40 and made(again) == ["embeddings"]
    assert again.release.release_id == first.release.release_id  # the same vectors are the same artifact


def write_items(items: Sequence[Item], file: Path) -> Path:
    rows = [{"id": i.item_id, "title": i.title, "text": i.text, "attributes": {"genre": ["Drama"]}} for i in items]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", ["items.jsonl", "items.parquet"])
def test_a_catalog_takes_the_place_of_the_items_for_this_and_later_runs(place, films, tmp_path, name: str) -> None:
    place.run()
    items = [*films.items[:30], Item("new", "Baltic Maps", "of rivers")]
    report, _ = place.run(catalog=str(write_items(items, tmp_path / name)))
    catalog = place.catalog(report)
    assert catalog.item_ids(np.arange(len(catalog), dtype=np.int32)) == [item.item_id for item in items]
    assert catalog.title(30) == "Baltic Maps" and catalog.labels(30) == {"genre": ("Drama",)}
    kept = place.workspace.dataset()
    gone = np.array([item in {i.item_id for i in films.items[30:]} for item in films.events.item_ids])
    assert 0 < gone.sum() < len(gone)
    assert kept.events.item_ids.tolist() == films.events.item_ids[~gone].tolist()
    assert kept.left_out == {"event on an item that the catalog no longer holds": int(gone.sum())}
    assert report.release.notes["events"] == int((~gone).sum())
    later, _ = place.run()
    assert (place.encoder.texts, made(later)) == ([], [])
    assert later.release.release_id == report.release.release_id


def test_of_a_catalog_only_texts_that_nobody_knows_are_embedded(place, films, tmp_path) -> None:
    place.run(catalog=str(write_items(films.items, tmp_path / "items.jsonl")))
    more = [Item("new", "Baltic Maps", "of rivers"), *films.items[::-1]]
    place.run(catalog=str(write_items(more, tmp_path / "more.parquet")))
    (text,) = place.encoder.texts
    assert text.startswith("Baltic Maps")


def test_a_catalog_with_too_many_bad_rows_changes_nothing_and_with_fewer_leaves_them_out(
    place, films, tmp_path
) -> None:
    first, _ = place.run()
    file = write_items(films.items, tmp_path / "items.jsonl")
    file.write_text(file.read_text() + "not json\n")
    with pytest.raises(FIXABLE, match="1 bad rows, 0 allowed"):
        place.run(catalog=str(file), max_bad_rows=0)
    assert place.workspace.newest_release() == first.release
    assert place.workspace.dataset().items == films.items
    report, _ = place.run(catalog=str(file), max_bad_rows=1)
    assert report.release.notes["items"] == 40
    (line,) = (place.workspace.data / "catalog.rejects.jsonl").read_text().splitlines()
    assert (json.loads(line)["file"], json.loads(line)["row"]) == ("items.jsonl", 41)
