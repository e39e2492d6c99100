"""Importers: each turns one source into a `Dataset`; `IMPORTERS` is how the command line finds them.

Bad rows are numbered, written to a rejects file and counted against a limit: none is dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from models.hub import MOVIELENS_100K_URI
from pipelines.dataset import Dataset
from pipelines.importers.amazon import amazon_industrial
from pipelines.importers.generic import generic
from pipelines.importers.movielens import movielens_100k, movielens_small
from pipelines.importers.online_retail import online_retail
from pipelines.importers.rejects import ImportFailed

__all__ = [
    "IMPORTERS",
    "ImportFailed",
    "Importer",
    "amazon_industrial",
    "generic",
    "movielens_100k",
    "movielens_small",
    "online_retail",
]


@dataclass(frozen=True, slots=True)
class Importer:
    """One importer as the command line shows it.

    Attributes:
        run: called with one path per name in `inputs`, and keywords `rejects`, `max_bad_rows`, `progress`.
        inputs: the paths it needs, as option names.
        optional: paths it takes as keywords where they are given, as option names.
        summary: one line of help.
        default_uri: where the one input comes from when no path is given.
    """

    run: Callable[..., Dataset]
    inputs: tuple[str, ...]
    summary: str
    default_uri: str | None = None
    optional: tuple[str, ...] = ()


IMPORTERS: Mapping[str, Importer] = {
    "movielens-100k": Importer(
        movielens_100k, ("path",), "100,000 ratings of 1,682 films, fetched when no path is given", MOVIELENS_100K_URI
    ),
    "movielens-small": Importer(movielens_small, ("path",), "ml-latest-small, a folder you have downloaded"),
    "online-retail": Importer(online_retail, ("path",), "a shop's invoices (UCI), a Parquet file"),
    "amazon-industrial": Importer(
        amazon_industrial,
        ("path",),
        "products with long texts (Amazon 2018 by MiniOneRec), a folder you have",
    ),
    "generic": Importer(
        generic,
        ("items", "events"),
        "your own items, events and reviews, JSON lines or Parquet",
        optional=("reviews",),
    ),
}
