"""Declarations as bytes, which of two counts, and how long."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.declared import Declaration, later, pack, strength, unpack

labels = st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=9).map(tuple)


@given(labels, st.integers(0, 2**53), st.booleans())
def test_a_declaration_survives_its_bytes(given_labels, at: int, vector: bool) -> None:
    found = unpack(pack(Declaration(given_labels, np.array([0.6, 0.8], np.float32) if vector else None, at)))
    assert found is not None and (found.labels, found.declared_ms) == (given_labels, at)
    assert (found.vector is not None) == vector and bool(found) == (vector or given_labels != ())
    assert found.vector is None or np.allclose(found.vector, [0.6, 0.8], atol=1e-3)


@given(st.binary(max_size=64), st.integers(0, 60), st.integers(0, 255))
def test_no_bytes_crash_a_reader(data: bytes, at: int, byte: int) -> None:
    unpack(data)
    good = bytearray(pack(Declaration((("genres", "Drama"),), np.ones(4, np.float32), 7)))
    good[at % len(good)] = byte
    unpack(bytes(good))


@pytest.mark.parametrize("body", [b"7", b"{}", b"[1]", b'[["a"]]', b'[["a",1]]', b'[["a","b","c"]]', b"\xff", b"[["])
def test_labels_that_are_no_pairs_of_texts_are_no_declaration(body: bytes) -> None:
    data = b"\x01" + bytes(8) + len(body).to_bytes(4, "big") + body
    assert unpack(data) in (None, Declaration()), "an empty object has no pairs, which is nothing declared"


def test_the_later_of_two_counts_and_the_first_of_equals() -> None:
    old, new, same = Declaration(declared_ms=1), Declaration(declared_ms=2), Declaration(declared_ms=2)
    assert later(old, new) is new and later(new, old) is new and later(new, same) is new
    assert later(None, old) is old and later(old, None) is old and later(None, None) is None


def test_it_counts_less_with_every_event_and_then_nothing() -> None:
    assert [strength(n, over=4) for n in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
