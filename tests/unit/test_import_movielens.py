"""Small files in the two MovieLens layouts, with the oddities of the real ones."""

import json
from pathlib import Path

import pytest

from pipelines.importers import IMPORTERS, ImportFailed, movielens_100k, movielens_small


@pytest.fixture
def atomic(tmp_path: Path) -> Path:
    rows = {
        "ml-100k.item": [
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
            '9\t"Quoted" Film, The\t1995\tCrime Sci-Fi',
            "267\tunkonwn\tunkonwn\tunknown",
            "1412\tLand Before Time III (1995)\tV\tAnimation Children's",
        ],
        "ml-100k.inter": [
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "1\t267\t4\t881250949",
            "2\t9\t3\t881250948",
        ],
        "ml-100k.user": [
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
            "1\t24\tM\ttechnician\t85711",
        ],
    }
    for name, text in rows.items():
        (tmp_path / name).write_text("\n".join(text) + "\n", "utf-8")
    return tmp_path


def test_the_oddities_of_the_100k_set_are_put_right(atomic: Path) -> None:
    dataset = movielens_100k(atomic, rejects=atomic / "rejects")
    quoted, untitled, land = dataset.items
    assert (quoted.title, quoted.labels, quoted.numbers) == (
        'The "Quoted" Film',
        {"genres": ("Crime", "Sci-Fi")},
        {"year": 1995.0},
    )
    assert (untitled.title, untitled.labels, untitled.numbers) == ("Untitled film 267", {}, {})
    assert (land.title, land.numbers) == ("Land Before Time III", {"year": 1995.0})
    assert list(dataset.events.timestamps_ms) == [881250948000, 881250949000]
    assert dataset.users == {"1": {"age": "24", "gender": "M", "occupation": "technician"}}


def test_a_bad_line_of_a_delimited_file_is_numbered_as_an_editor_counts(atomic: Path) -> None:
    with (atomic / "ml-100k.inter").open("a") as file:
        file.write("1\t9\tfive\t881250949\n1\t9\n")
    with pytest.raises(ImportFailed, match="2 bad rows"):
        movielens_100k(atomic, rejects=atomic / "rejects")
    entries = [json.loads(line) for line in (atomic / "rejects").read_text().splitlines()]
    assert [(e["row"], e["reason"]) for e in entries] == [
        (4, "rating or time: not a number"),
        (5, "cells: 2, the header has 4"),
    ]


def test_another_data_set_in_the_folder_is_said_so(atomic: Path) -> None:
    (atomic / "ml-100k.item").write_text("a\tb\n1\t2\n")
    with pytest.raises(ImportFailed, match="no column 'item_id:token'"):
        movielens_100k(atomic, rejects=atomic / "rejects")


def test_the_small_set_joins_overviews_and_reads_titles_with_commas(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Net, The (1995)",Action|Crime\n2,Paterson,(no genres listed)\n'
    )
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,4.5,964982703\n")
    assert movielens_small(tmp_path, rejects=tmp_path / "r").items[0].text == ""
    (tmp_path / "overviews.csv").write_text('movieId,tmdbId,overview,overview_source\n1,5,"A hacker, hunted.",x\n')
    dataset = movielens_small(tmp_path, rejects=tmp_path / "r")
    net, paterson = dataset.items
    assert (net.title, net.text, net.labels) == ("The Net", "A hacker, hunted.", {"genres": ("Action", "Crime")})
    assert (paterson.title, paterson.labels, paterson.numbers) == ("Paterson", {}, {})
    assert list(dataset.events.values) == [4.5] and "TMDB" in dataset.licence


def test_every_importer_is_registered_with_its_inputs() -> None:
    assert {n: i.inputs for n, i in IMPORTERS.items()} == {
        "amazon-industrial": ("path",),
        "movielens-100k": ("path",),
        "movielens-small": ("path",),
        "online-retail": ("path",),
        "generic": ("items", "events"),
    }
