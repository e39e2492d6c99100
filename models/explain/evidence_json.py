"""Evidence as JSON and back: for what waits in the cache store or travels through Ray Data as a column of text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from models.explain.evidence import Evidence, Liked
from models.explain.positives import Attribute


def evidence_to_json(evidence: Evidence) -> str:
    """Return one line of JSON with everything of the record."""
    return json.dumps(asdict(evidence), ensure_ascii=False, separators=(",", ":"))


def evidence_from_json(text: str) -> Evidence:
    """Read what `evidence_to_json` wrote. Raises ValueError when it is anything else."""
    try:
        row: Mapping[str, Any] = json.loads(text)
        return Evidence(
            **{
                **row,
                "liked": tuple(
                    Liked(**{**i, "how": tuple(i["how"]), "shared": _attributes(i["shared"])}) for i in row["liked"]
                ),
                "attributes": _attributes(row["attributes"]),
                "claims": tuple(row["claims"]),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not an evidence record: {type(error).__name__}") from error


def _attributes(rows: list[list[str]]) -> tuple[Attribute, ...]:
    return tuple(Attribute(text, kind) for text, kind in rows)  # type: ignore[arg-type]
