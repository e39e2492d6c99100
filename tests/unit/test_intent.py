"""Search intent as bytes, and how it fades."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.intent import MAX_DIMENSION, encoder_tag, faded, is_packed, pack, packed_tag, unpack

UNIT = np.array([0.6, -0.8, 0.0], np.float32)


def test_a_vector_survives_the_bytes_but_for_the_last_digits() -> None:
    wide = np.random.default_rng(3).normal(size=384).astype(np.float32)
    wide /= np.linalg.norm(wide)
    found = unpack(pack(wide))
    assert found is not None and found.dtype == np.float32 and len(pack(wide)) == 768
    assert abs(float(found @ wide) - 1.0) < 1e-3


def test_a_tag_survives_beside_the_vector_and_what_has_none_is_read_as_before() -> None:
    tagged, plain = pack(UNIT, encoder_tag("hf://a/b@c")), pack(UNIT)
    assert packed_tag(tagged) == encoder_tag("hf://a/b@c") != encoder_tag("hf://a/b@d") and packed_tag(plain) == b""
    assert len(tagged) == len(plain) + 9 and is_packed(tagged) and is_packed(plain)
    np.testing.assert_array_equal(unpack(tagged), unpack(plain))
    assert pack(UNIT, encoder_tag(None)) == plain


def test_the_longest_vector_has_room_for_its_tag() -> None:
    longest = pack(np.ones(MAX_DIMENSION, np.float32), encoder_tag("x"))
    assert is_packed(longest) and not is_packed(b"\0\0" + longest) and not is_packed(longest[:-1] + b"\2")


@given(st.binary(max_size=40))
def test_no_bytes_crash_a_reader_and_what_comes_out_is_finite(data: bytes) -> None:
    found, tagged = unpack(data), 9 * (len(data) % 2)
    assert found is None or (np.isfinite(found).all() and found.any() and len(found) == (len(data) - tagged) // 2)


@pytest.mark.parametrize("data", [b"", b"x", bytes(6), bytes(2 * MAX_DIMENSION + 2)])
def test_what_is_no_vector_is_none(data: bytes) -> None:
    assert unpack(data) is None


@pytest.mark.parametrize(
    ("age_ms", "left"), [(-5, 1.0), (0, 1.0), (450_000, 0.75), (900_000, 0.5), (1_799_000, 1 / 1800)]
)
def test_it_fades_evenly(age_ms: int, left: float) -> None:
    found = faded(UNIT, age_ms=age_ms, life_s=1800, dimension=3)
    assert found is not None and found.dtype == np.float32
    np.testing.assert_allclose(found, UNIT * np.float32(left), rtol=1e-5)


@pytest.mark.parametrize(
    ("vector", "age_ms", "life_s", "dimension"),
    [(None, 0, 1800, 3), (UNIT, 1_800_000, 1800, 3), (UNIT, 10**13, 1800, 3), (UNIT, 0, 0, 3), (UNIT, 0, 1800, 4)],
    ids=["nothing", "its whole life", "since 1970", "switched off", "another dimension"],
)
def test_what_is_old_or_of_another_encoder_is_nothing(vector, age_ms: int, life_s: float, dimension: int) -> None:
    assert faded(vector, age_ms=age_ms, life_s=life_s, dimension=dimension) is None
