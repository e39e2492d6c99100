"""Live events are the same events whatever files hold them, so a ranker made of them is found again."""

import pytest

from models.catalog import Item, ItemCatalog
from models.consumer import event_log
from models.consumer.event_log import compact, read_event_log, write_entries
from models.events import Event, EventLog, EventType
from models.retrieval.settings import RetrievalSettings
from models.store.streams import StreamEntry
from pipelines.digests import digest_event_set, digest_events
from pipelines.makers import CompressedTraining, known_events, live_inputs, with_live
from pipelines.settings import PipelinesSettings

NOW = 1_760_000_000_000
CATALOG = ItemCatalog.of([Item(f"i{n}", f"film {n}") for n in range(6)])


def entries(count: int = 40) -> list[tuple[int, StreamEntry]]:
    """Four events a millisecond, of several buckets and users, every eighth on an item that nobody knows."""
    made = []
    for n in range(count):
        item = "unknown" if n % 8 == 7 else f"i{n % 6}"
        event = Event(f"e{n}", f"u{n % 3}", EventType.click, NOW + n // 4, item, 1.0 + n % 2)
        made.append((n % 3, StreamEntry(f"{NOW}-{n}", event)))
    return made


def spread(folder, monkeypatch, parts, names) -> EventLog:
    """Write `parts` to files of these names and read them again."""
    names = iter(names)
    with monkeypatch.context() as patched:
        patched.setattr(event_log.uuid, "uuid4", lambda: type("Name", (), {"hex": next(names)}))
        for part in parts:
            write_entries(folder, part)
    return read_event_log(folder)


@pytest.fixture
def logs(tmp_path, monkeypatch) -> list[EventLog]:
    all_of_them = entries()
    halves = [all_of_them[::2], all_of_them[1::2]]
    found = [
        spread(tmp_path / "one", monkeypatch, [all_of_them], "a"),
        spread(tmp_path / "first", monkeypatch, halves, "ab"),
        spread(tmp_path / "last", monkeypatch, halves, "ba"),
        spread(tmp_path / "turned", monkeypatch, [all_of_them[::-1]], "a"),
        spread(tmp_path / "twice", monkeypatch, [all_of_them[20:], all_of_them], "ab"),
    ]
    compact(tmp_path / "last", files=2)
    return [*found, read_event_log(tmp_path / "last")]


def test_the_log_reads_the_same_in_whatever_files_it_lies(logs) -> None:
    for log in logs[1:]:
        assert log.to_arrow().equals(logs[0].to_arrow())
    # Entries of one bucket in one millisecond stay in the order they came in: e0 and e3 are of bucket 0.
    assert logs[0].item_ids[:2].tolist() == ["i0", "i3"]


def test_a_tenth_entry_of_a_millisecond_comes_after_the_second(tmp_path) -> None:
    made = [(1, StreamEntry(f"{NOW}-{n}", Event(f"e{n}", "u", EventType.click, NOW, f"i{n}"))) for n in (10, 2, 1)]
    write_entries(tmp_path, made)
    assert read_event_log(tmp_path).item_ids.tolist() == ["i1", "i2", "i10"]


def test_a_ranker_s_inputs_are_the_same_for_the_same_events(logs) -> None:
    def inputs(live: EventLog) -> dict:
        return CompressedTraining(PipelinesSettings(), RetrievalSettings(), live=live).inputs(CATALOG)

    same = [inputs(log) for log in logs]
    turned = logs[0].take(range(len(logs[0]))[::-1])
    assert digest_events(turned) != digest_events(logs[0])
    assert all(one == same[0] for one in [*same, inputs(turned)])
    known = logs[0].take(logs[0].item_ids != "unknown")
    assert inputs(known) == same[0]
    assert inputs(known.take(range(len(known) - 1))) != same[0]


@pytest.mark.parametrize("column", ["user_ids", "item_ids", "types", "values", "timestamps_ms"])
def test_an_event_that_differs_in_anything_is_another(logs, column) -> None:
    from dataclasses import replace

    changed = getattr(logs[0], column).copy()
    changed[3] = "i0x" if changed.dtype == object else changed[3] + 1
    assert digest_event_set(replace(logs[0], **{column: changed})) != digest_event_set(logs[0])


def test_an_event_that_is_there_twice_counts_twice(logs) -> None:
    assert digest_event_set(logs[0].take([*range(40), 0])) != digest_event_set(logs[0])


def test_events_of_unknown_items_count_nowhere(logs) -> None:
    known = known_events(logs[0], CATALOG)
    assert len(known) == 35 and len(with_live(EventLog.empty(), logs[0], CATALOG)) == 35
    assert live_inputs(logs[0], CATALOG) == live_inputs(known, CATALOG)
    strangers = logs[0].take(logs[0].item_ids == "unknown")
    assert len(strangers) == 5 and live_inputs(strangers, CATALOG) == {}
    # An item that is put later brings its events in.
    grown = ItemCatalog.of([*(CATALOG.item(row) for row in range(6)), Item("unknown", "known now")])
    assert live_inputs(logs[0], grown) != live_inputs(logs[0], CATALOG)
