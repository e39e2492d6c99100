"""From items with pictures to a served release: the job, what is taken over, what could not be read, live items."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.artifacts import ArtifactError, ArtifactStore
from models.bundle import load_bundle
from models.candidates import Source
from models.catalog import CATALOG_FILE, Item, ItemCatalog, write_catalog
from models.declared import Declaration
from models.encoder import HashEncoder
from models.events import EventType
from models.features import ANONYMOUS, features_from_events
from models.items.change import ItemChange
from models.items.folded import read_folded, write_folded
from models.media.items import load_item_encoder
from models.media.settings import MediaSettings, ModalitySettings
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights
from pipelines.build import Builder
from pipelines.dataset import Dataset, read_dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.blocks import BlockError, EncoderSpec
from pipelines.embedding.runners import EncodeBlocks, InlineRunner, WorkerPlace
from pipelines.importers.rows import BadRow, ItemRows
from pipelines.settings import PipelinesSettings

BY_CONTENT = SourceWeights(**dict.fromkeys(SourceWeights.model_fields, 0.0) | {"semantic": 1.0, "similar": 1.0})


def items(count: int = 40) -> list[Item]:
    """Every fourth has a picture, ten of them in all; all of them have texts of two words."""
    return [
        Item(f"i{n:02}", f"Film {n % 5}", f"word{n}", media={"image": f"p{n // 4}.png"} if n % 4 == 0 else {})
        for n in range(count)
    ]


class Shop:
    """Embeds and builds catalogs with pictures in one artifact store."""

    def __init__(self, folder: Path, model: Path, root: Path) -> None:
        of = ModalitySettings(uri="clip", dimension=24, weight=0.4)
        self.media = MediaSettings(image=of, roots=(str(root),))
        self.artifacts = ArtifactStore(str(folder / "artifacts"), cache=folder / "cache")
        self.spec = EncoderSpec("hash", media=(("image", "clip", 24, 0.4),))
        self.load = partial(load_item_encoder, partial(HashEncoder, 32), {"image": model}, self.media)
        self.runner = InlineRunner(self.load)

    def embedder(self, **options) -> Embedder:
        return Embedder(self.artifacts, self.spec, self.runner, **options)

    def catalog(self, wanted: list[Item]):
        with tempfile.TemporaryDirectory() as folder:
            write_catalog(wanted, Path(folder) / CATALOG_FILE)
            return self.artifacts.get(self.artifacts.put("catalog", Path(folder), {}))

    def embed(self, wanted: list[Item], **options) -> tuple[str, dict]:
        catalog = self.catalog(wanted)
        with tempfile.TemporaryDirectory() as folder:
            facts = self.embedder(**options).embed(catalog, Path(folder))
            return self.artifacts.put("embeddings", Path(folder), facts), dict(facts)

    def release(self, log, wanted: list[Item]):
        retrieval = RetrievalSettings(
            **{name: BY_CONTENT for name in ("weights", "short_weights", "search_weights", "item_weights")}
        )
        builder = Builder(
            self.artifacts,
            settings=PipelinesSettings(train_ranker=False),
            retrieval=retrieval,
            encoder=lambda: HashEncoder(32),
            encoder_uri="hash",
            embedder=self.embedder(),
        )
        release = builder.run(Dataset("shop", wanted, log)).release
        return load_bundle(self.artifacts, release, settings=retrieval, encoder="hash")


@pytest.fixture
def shop(tmp_path, image_model, media_root) -> Shop:
    return Shop(tmp_path, image_model, media_root)


def test_media_survive_every_form_an_item_takes(tmp_path) -> None:
    wanted = items(8)
    write_dataset(Dataset("d", wanted, _empty()), tmp_path / "d")
    assert read_dataset(tmp_path / "d").items == wanted
    write_catalog(wanted, tmp_path / CATALOG_FILE)
    catalog = ItemCatalog(tmp_path)
    assert [catalog.item(row) for row in range(8)] == wanted
    assert catalog.media("image", np.array([4, 1, 0], np.int32)) == ["p1.png", "", "p0.png"]
    assert catalog.media("audio", np.array([4], np.int32)) == [""]
    from models.items.change import LiveItem

    write_folded({i.item_id: LiveItem(i, hidden=True) for i in wanted}, tmp_path)
    assert [live.item for live in read_folded(tmp_path).values()] == wanted


def _empty():
    from models.events import EventLog

    return EventLog.empty()


def test_importers_take_a_path_or_url_and_refuse_anything_else() -> None:
    rows = ItemRows()
    rows.add({"id": "a", "title": "A", "image": "https://example.org/a.png", "audio": None})
    assert rows.items[0].media == {"image": "https://example.org/a.png"}
    for wrong in (7, ["x"], "x" * 5000, "a\x00b"):
        with pytest.raises(BadRow, match="image"):
            rows.add({"id": "b", "title": "B", "image": wrong})


def test_a_change_of_fields_keeps_the_picture(tiny) -> None:
    from models.items.change import LiveItem

    before = LiveItem(Item("a", "A", media={"image": "p.png"}))
    after = before.after(ItemChange("patch", "a", 1, title="B"))
    assert after.item == Item("a", "B", media={"image": "p.png"})


def test_the_job_counts_what_was_named_and_read_and_says_where_it_lies(shop) -> None:
    _, facts = shop.embed(items())
    assert facts["media"] == {"image": {"named": 10, "read": 10}}
    assert facts["layout"] == {"text": 32, "parts": [["image", 24, 0.4]]} and facts["dimension"] == 32 + 24 + 32


def test_only_items_whose_picture_or_text_changed_are_embedded_again(shop) -> None:
    ref, _ = shop.embed(items())
    moved = [replace(i, media={"image": "p9.png"}) if i.item_id == "i00" else i for i in items()]
    assert shop.embed(moved, previous=ref)[1]["embedded"] == 1
    without = [replace(i, media={}) if i.item_id == "i00" else i for i in items()]
    assert shop.embed(without, previous=ref)[1]["embedded"] == 1
    assert shop.embed(items(), previous=ref)[1]["embedded"] == 0


def test_another_way_of_reading_files_embeds_catalogs_with_pictures_anew_and_no_others(shop, monkeypatch) -> None:
    ref, _ = shop.embed(items())
    before, texts = shop.embedder().inputs("catalog/x"), EncoderSpec("hash").space
    for module in ("blocks", "assemble"):
        monkeypatch.setattr(f"pipelines.embedding.{module}.READING", 99)
    assert shop.embed(items(), previous=ref)[1]["embedded"] == 40
    assert shop.embedder().inputs("catalog/x") != before and EncoderSpec("hash").space == texts


def test_unreadable_pictures_stop_the_job_beyond_the_limit_and_are_tried_again(shop, media_root) -> None:
    (media_root / "p3.png").rename(media_root / "later.png")
    with pytest.raises(BlockError, match=r"^1 pictures and sounds .*max_unread_media = 0"):
        shop.embed(items())
    assert [what for what, _ in shop.runner.unread] == ["p3.png"]
    ref, facts = shop.embed(items(), max_unread=1)
    assert facts["media"] == {"image": {"named": 10, "read": 9}}
    (media_root / "later.png").rename(media_root / "p3.png")
    _, facts = shop.embed(items(), previous=ref)
    assert facts["media"]["image"]["read"] == 10 and facts["embedded"] == 1


def test_a_worker_of_the_pool_reads_pictures_too_and_hands_over_what_it_could_not_read(
    shop, tmp_path, media_root
) -> None:
    (media_root / "p0.png").write_bytes(b"damaged")
    catalog = shop.catalog(items())
    place = WorkerPlace(str(tmp_path / "artifacts"), tmp_path / "cache", "main", catalog.ref)
    worker = EncodeBlocks(place, shop.load)
    from pipelines.embedding.blocks import BlockFolder, cut
    from pipelines.embedding.content import catalog_contents

    held = ItemCatalog(catalog.path)
    contents = catalog_contents(held, ("image",))
    (block,) = cut(contents, held.hashes, np.arange(40, dtype=np.int32), shop.spec)
    batch = {
        "key": np.array([block.key]),
        "rows": np.array([block.rows.astype("<i4").tobytes()], object),
        "contents": np.array([block.contents.astype("<u8").tobytes()], object),
        "dtype": np.array([block.dtype]),
    }
    (unread,) = worker(batch)["unread"]
    assert [what for what, _ in json.loads(unread)] == ["p0.png"]
    assert BlockFolder(shop.artifacts).read(block).shape == (40, 88)


def test_an_item_without_a_picture_is_found_as_by_text_alone(shop, log_of) -> None:
    bundle = shop.release(log_of(), items())
    text = HashEncoder(32).encode(bundle.catalog.documents(np.arange(40, dtype=np.int32)))
    query = HashEncoder(32).encode(["Film 3 word13"])[0]
    assert np.allclose(bundle.embeddings @ bundle.asked(query), text @ query, atol=1e-5)
    found = bundle.engine.retrieve(RetrievalQuery(n=10, now_ms=0, intent=bundle.asked(query), personal=False))
    order = np.lexsort((np.arange(40), -(text @ query).round(5)))
    assert set(found.rows[:3].tolist()) == set(order[:3].tolist())


def test_what_a_stranger_declared_is_near_in_text_whatever_pictures_there_are(shop, log_of) -> None:
    bundle = shop.release(log_of(), items())
    declared = HashEncoder(32).encode(["Film 3 word13"])[0]
    text = HashEncoder(32).encode(bundle.catalog.documents(np.arange(40, dtype=np.int32)))
    assert np.allclose(bundle.text_vectors(np.arange(40, dtype=np.int32)), text, atol=1e-5)
    engine = bundle.engine.reweighted(
        bundle.settings.model_copy(
            update=dict.fromkeys(("weights", "short_weights", "cold_weights", "declared_weights"), BY_CONTENT)
        )
    )
    stranger = replace(ANONYMOUS, declared=Declaration((), declared, 0))
    found = engine.retrieve(RetrievalQuery(n=3, now_ms=1, user=stranger))
    assert set(found.rows.tolist()) == set(np.argsort(-(text @ declared).round(5), kind="stable")[:3].tolist())


def test_a_search_counts_the_same_beside_history_with_and_without_a_picture_encoder(shop, log_of) -> None:
    plain = [replace(i, media={}) for i in items()]
    intent = HashEncoder(32).encode(["word3"])[0]
    history = features_from_events(
        ["i01", "i02"], np.full(2, EventType.like, np.uint8), np.ones(2, np.float32), np.array([1, 2], np.int64)
    )
    query = RetrievalQuery(n=5, now_ms=3, user=history)
    scores = []
    for release in (shop.release(log_of(), items()), shop.release(log_of(), plain)):
        state = release.engine._state(replace(query, intent=release.asked(intent)))
        source = release.engine._sources[Source.semantic]
        asked = source.vector(state)  # i01, i02 and i03 have no pictures
        scores.append(np.array([asked @ np.asarray(release.embeddings[row]) for row in (1, 2, 3, 5)]))
    assert scores[0] / np.linalg.norm(scores[0]) == pytest.approx(scores[1] / np.linalg.norm(scores[1]), abs=1e-4)


def test_a_picture_brings_items_closer_whose_texts_say_nothing(shop, log_of) -> None:
    same = [replace(i, media={"image": "p0.png"}) if i.item_id in ("i08", "i31") else i for i in items()]
    query = RetrievalQuery(n=40, now_ms=0, seed_items=("i08",), personal=False, about_seeds=True)
    places, likeness = [], []
    for wanted in ([replace(i, media={}) for i in items()], same):
        bundle = shop.release(log_of(), wanted)
        places.append(bundle.catalog.item_ids(bundle.engine.retrieve(query).rows).index("i31"))
        rows = bundle.catalog.rows(["i08", "i31"])
        vectors = np.asarray(bundle.embeddings[rows])
        asked = vectors if bundle.layout is None else bundle.layout.asked(vectors)
        likeness.append(float(asked[0] @ vectors[1]))
    assert likeness[1] == pytest.approx(0.6 * likeness[0] + 0.4, abs=1e-5)
    assert places[1] < places[0]


def test_a_live_item_stands_among_items_with_pictures_by_its_text(shop, log_of) -> None:
    bundle = shop.release(log_of(), items())
    vector = HashEncoder(32).encode(["Film new. word13"])[0]
    live = bundle.with_changes([(1, ItemChange("put", "x1", 1, "Film new", "word13", vector=vector))])
    assert live.text_dimension == 32 and live.embeddings.shape == (41, 88)
    assert np.allclose(live.embeddings @ live.asked(vector), bundle_scores(live, vector), atol=1e-5)
    found = live.engine.retrieve(RetrievalQuery(n=3, now_ms=0, intent=live.asked(vector), personal=False))
    assert live.catalog.item_ids(found.rows)[0] == "x1"


@pytest.mark.parametrize("operation", ["patch", "put"])
def test_a_live_change_of_the_text_keeps_the_picture_that_the_release_read(shop, log_of, operation) -> None:
    bundle = shop.release(log_of(), items())
    text = HashEncoder(32).encode(["Another film. word1"])[0]
    change = ItemChange(operation, "i04", 1, "Another film", "word1", vector=text, media={"image": "p1.png"})
    live = bundle.with_changes([(1, change if operation == "put" else replace(change, media={}))])
    assert live.layout is not None
    row = live.catalog.row("i04")
    asked = live.layout.asked(np.asarray(bundle.embeddings[[row]]))[0]
    cosine = float(HashEncoder(32).encode([bundle.catalog.document(row)])[0] @ text)
    assert float(live.embeddings[row] @ asked) == pytest.approx(0.4 + 0.6 * cosine, abs=1e-5)
    assert live.layout.has(live.embeddings[[row]], "image").all()
    assert np.linalg.norm(live.embeddings[row]) == pytest.approx(1, abs=1e-5)
    # As the next release has it.
    after = [replace(i, title="Another film", text="word1") if i.item_id == "i04" else i for i in items()]
    built = np.asarray(shop.release(log_of(), after).embeddings[row])
    assert np.allclose(live.embeddings[row], built, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        ItemChange("put", "i04", 1, "Film 4", "word4", media={"image": "p7.png"}),
        ItemChange("put", "i04", 1, "Film 4", "word4"),
        ItemChange("patch", "i04", 1, media={"image": "p7.png"}),
        ItemChange("patch", "i04", 1, media={"image": ""}),
    ],
)
def test_a_live_item_that_names_another_picture_is_compared_by_its_text_until_the_next_release(
    shop, log_of, change
) -> None:
    bundle = shop.release(log_of(), items())
    row = bundle.catalog.row("i04")
    text = HashEncoder(32).encode([bundle.catalog.document(row)])
    given = replace(change, vector=text[0] if change.operation == "put" else None)
    live = bundle.with_changes([(1, given)])
    assert live.layout is not None
    assert np.allclose(live.embeddings[row], live.layout.joined(text, {})[0], atol=1e-6)
    back = live.with_changes([(2, ItemChange("patch", "i04", 2, media={"image": "p1.png"}))])
    assert np.allclose(back.embeddings[row], bundle.embeddings[row], atol=1e-6)


def bundle_scores(bundle, query) -> np.ndarray:
    texts = [bundle.catalog.document(row) for row in range(len(bundle.catalog))]
    return HashEncoder(32).encode(texts) @ query


def test_vectors_that_do_not_fit_their_layout_are_refused(shop, log_of) -> None:
    bundle = shop.release(log_of(), items())
    ref = bundle.release.artifacts["embeddings"]
    artifact = shop.artifacts.get(ref)
    for layout, said in (({"text": 31, "parts": [["image", 24, 0.4]]}, "88 dimensions"), ({"text": 1}, "no layout")):
        other = shop.artifacts.put("embeddings", artifact.path, {**artifact.meta, "layout": layout})
        wrong = replace(bundle.release, artifacts={**bundle.release.artifacts, "embeddings": other})
        with pytest.raises(ArtifactError, match=said):
            load_bundle(shop.artifacts, wrong, settings=RetrievalSettings())


def test_a_live_change_names_a_picture_that_the_next_release_reads(shop, log_of) -> None:
    from pipelines.fold import Fold

    dataset = Dataset("shop", items(), log_of())
    changes = [
        ItemChange("put", "x1", 1, "Film new", "", media={"image": "p3.png"}),
        ItemChange("patch", "i01", 1, media={"image": "p2.png"}),
        ItemChange("patch", "i04", 1, media={"image": ""}),
        ItemChange("patch", "i08", 1, title="Film other"),
    ]
    assert [ItemChange.from_bytes(*change.to_bytes()) for change in changes] == changes
    folded = Fold().after(enumerate(changes, start=1), dataset).applied(dataset)
    media = {item.item_id: dict(item.media) for item in folded.items}
    assert media["x1"] == {"image": "p3.png"} and media["i01"] == {"image": "p2.png"}
    assert media["i04"] == {} and media["i08"] == {"image": "p2.png"}
    assert shop.embed(folded.items)[1]["media"] == {"image": {"named": 11, "read": 11}}


def test_a_change_that_the_log_held_before_pictures_reads_as_it_did() -> None:
    body, vector = ItemChange("put", "a", 1, "A").to_bytes()
    assert b"media" not in body
    assert ItemChange.from_bytes(body, vector) == ItemChange("put", "a", 1, "A")
