"""MovieLens: the 100K set as RecBole's atomic files, and ml-latest-small as GroupLens ships it.

Titles become what a person would write (`models.titles`), genres labels, the year a number, ratings `rating` events.
Both are research data: see each `licence`. Called through the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.progress import Progress, silent
from models.titles import display_title, split_year
from pipelines.dataset import Dataset
from pipelines.importers.collect import collect
from pipelines.importers.readers import delimited
from pipelines.importers.rejects import ImportFailed, Rejects
from pipelines.importers.rows import BadRow, EventRows, ItemRows

_LICENCE = (
    "MovieLens, GroupLens Research, University of Minnesota: research use, no commercial use without permission; "
    "cite Harper and Konstan 2015, doi:10.1145/2827872"
)
_TMDB = "; overviews: TMDB, not endorsed or certified by TMDB"


def movielens_100k(folder: Path, *, rejects: Path, max_bad_rows: int = 0, progress: Progress = silent) -> Dataset:
    """Import MovieLens-100K from a folder with `ml-100k.item`, `.inter` and `.user`. Raises ImportFailed.

    Known oddities: 267 has no title, year or genre ("unkonwn") and becomes "Untitled film 267", because it has
    ratings; 1412 has its year in the title; 18 titles occur twice under different ids and stay two items. Users
    keep age, gender and occupation; the zip code is not read.
    """
    bad = Rejects(rejects, max_bad_rows=max_bad_rows)
    items, users = ItemRows(), dict[str, dict[str, str]]()
    try:
        _read(folder / "ml-100k.item", items.add, _item_100k, bad, progress, tabs=True)
        events = EventRows(i.item_id for i in items.items)
        _read(folder / "ml-100k.inter", events.add, _rating_100k, bad, progress, tabs=True)
        _read(folder / "ml-100k.user", lambda row: users.update([_user_100k(row)]), dict, bad, progress, tabs=True)
        bad.finish()
    finally:
        bad.close()
    return Dataset("movielens-100k", items.items, events.log(), users, _LICENCE, dict(bad.reasons))


def movielens_small(path: Path, *, rejects: Path, max_bad_rows: int = 0, progress: Progress = silent) -> Dataset:
    """Import ml-latest-small from a folder with `movies.csv` and `ratings.csv`. Raises ImportFailed.

    An `overviews.csv` (movieId, overview) beside them becomes the items' text. `tags.csv` is not read: a few dozen
    users' private notes ("in netflix queue") are no attributes of a film.
    """
    bad = Rejects(rejects, max_bad_rows=max_bad_rows)
    items, overviews = ItemRows(), dict[str, str]()
    try:
        if (file := path / "overviews.csv").is_file():
            _read(file, lambda row: overviews.update({row["movieId"]: row["overview"]}), dict, bad, progress)
        _read(path / "movies.csv", items.add, lambda row: _movie(row, overviews), bad, progress)
        events = EventRows(i.item_id for i in items.items)
        _read(path / "ratings.csv", events.add, _rating_small, bad, progress)
        bad.finish()
    finally:
        bad.close()
    licence = _LICENCE + (_TMDB if overviews else "")
    return Dataset("movielens-small", items.items, events.log(), licence=licence, left_out=dict(bad.reasons))


def _read(file: Path, add: Any, shape: Any, bad: Rejects, progress: Progress, *, tabs: bool = False) -> None:
    """Read a delimited file through `shape`; a column that is not there fails the import at once."""
    rows = delimited(file, delimiter="\t", quoted=False) if tabs else delimited(file)
    try:
        collect(file, rows, add, rejects=bad, progress=progress, shape=shape)
    except KeyError as error:
        raise ImportFailed(f"{file}: no column {error}; is this the right data set?") from error


def _item_100k(row: Mapping[str, str]) -> dict[str, Any]:
    item_id, title, year = row["item_id:token"], row["movie_title:token_seq"], row["release_year:token"]
    bare, title_year = split_year(title)
    genres = [g for g in row["class:token_seq"].split() if g != "unknown"]
    number = int(year) if year.isdecimal() else title_year
    shown = f"Untitled film {item_id}" if bare == "unkonwn" else display_title(bare)
    return {"id": item_id, "title": shown, "attributes": {"genres": genres, "year": number}}


def _rating_100k(row: Mapping[str, str]) -> dict[str, Any]:
    return _rating(row["user_id:token"], row["item_id:token"], row["rating:float"], row["timestamp:float"])


def _user_100k(row: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    return row["user_id:token"], {n: row[f"{n}:token"] for n in ("age", "gender", "occupation")}


def _movie(row: Mapping[str, str], overviews: Mapping[str, str]) -> dict[str, Any]:
    bare, year = split_year(row["title"])
    genres = [g for g in row["genres"].split("|") if g != "(no genres listed)"]
    text = overviews.get(row["movieId"], "")
    return {
        "id": row["movieId"],
        "title": display_title(bare),
        "text": text,
        "attributes": {"genres": genres, "year": year},
    }


def _rating_small(row: Mapping[str, str]) -> dict[str, Any]:
    return _rating(row["userId"], row["movieId"], row["rating"], row["timestamp"])


def _rating(user: str, item: str, rating: str, seconds: str) -> dict[str, Any]:
    try:
        value, at = float(rating), int(seconds) * 1000
    except ValueError as error:
        raise BadRow("rating or time: not a number") from error
    return {"user": user, "item": item, "type": "rating", "time": at, "value": value}
