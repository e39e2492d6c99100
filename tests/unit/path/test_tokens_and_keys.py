"""Cursors, impressions and API keys: what is ours, whose it is, and until when."""

import base64

import numpy as np
import pytest

from models.ids import hash64_array
from serve.auth import Keys
from serve.errors import ConfigError, Unauthorised
from serve.signing import CURSOR_TTL_S, IMPRESSION_TTL_S, MAX_PAGED_ITEMS, Signer, TokenInvalid

SIGNER = Signer(b"0123456789abcdef")
SHOWN = hash64_array(["a", "b"])
NOW = 1_000_000


def cursor() -> str:
    token = SIGNER.cursor("main", "u1", SHOWN, now_s=NOW)
    assert token is not None
    return token


def impression() -> str:
    return SIGNER.impression("main", "u1", "i1", 3, "d1", now_s=NOW)


def test_a_cursor_gives_back_what_was_shown() -> None:
    assert SIGNER.open_cursor(cursor(), "main", "u1", now_s=NOW + CURSOR_TTL_S).tolist() == SHOWN.tolist()


def test_a_cursor_expires() -> None:
    with pytest.raises(TokenInvalid, match="expired"):
        SIGNER.open_cursor(cursor(), "main", "u1", now_s=NOW + CURSOR_TTL_S + 1)


@pytest.mark.parametrize(("tenant", "owner"), [("other", "u1"), ("main", "u2"), ("main", ""), ("mainu1", "")])
def test_a_cursor_of_another_tenant_or_user_is_refused(tenant: str, owner: str) -> None:
    with pytest.raises(TokenInvalid):
        SIGNER.open_cursor(cursor(), tenant, owner, now_s=NOW)


def test_a_cursor_of_another_key_is_refused() -> None:
    with pytest.raises(TokenInvalid):
        Signer(b"another key of 16 bytes").open_cursor(cursor(), "main", "u1", now_s=NOW)


def test_every_changed_byte_of_a_cursor_is_noticed() -> None:
    raw = base64.urlsafe_b64decode(cursor() + "==")
    for at in range(len(raw)):
        forged = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(TokenInvalid):
            SIGNER.open_cursor(base64.urlsafe_b64encode(forged).decode().rstrip("="), "main", "u1", now_s=NOW)


def test_a_truncated_cursor_is_refused_at_every_length() -> None:
    token = cursor()
    for length in range(len(token)):
        with pytest.raises(TokenInvalid):
            SIGNER.open_cursor(token[:length], "main", "u1", now_s=NOW)


@pytest.mark.parametrize("token", ["", "=", "====", "!!!!", "ünïcode", "A" * 16_384, "\x00" * 40])
def test_garbage_is_refused_as_garbage(token: str) -> None:
    with pytest.raises(TokenInvalid):
        SIGNER.open_cursor(token, "main", "u1", now_s=NOW)
    with pytest.raises(TokenInvalid):
        SIGNER.check_impression(token, "main", "u1", "i1", "d1", now_s=NOW)


def test_paging_ends_at_a_thousand_items() -> None:
    assert SIGNER.cursor("main", "u1", np.zeros(MAX_PAGED_ITEMS, np.uint64), now_s=NOW) is not None
    assert SIGNER.cursor("main", "u1", np.zeros(MAX_PAGED_ITEMS + 1, np.uint64), now_s=NOW) is None


def test_the_longest_cursor_fits_the_request_schema() -> None:
    from serve.schemas import RecommendRequest

    token = SIGNER.cursor("main", "u1", np.zeros(MAX_PAGED_ITEMS, np.uint64), now_s=NOW)
    assert RecommendRequest(cursor=token).cursor == token


def test_an_impression_proves_item_rank_and_decision() -> None:
    assert SIGNER.check_impression(impression(), "main", "u1", "i1", "d1", now_s=NOW) == 3


@pytest.mark.parametrize(
    "claim",
    [("x", "u1", "i1", "d1"), ("main", "x", "i1", "d1"), ("main", "u1", "x", "d1"), ("main", "u1", "i1", "x")],
)
def test_an_impression_says_nothing_about_anything_else(claim: tuple[str, str, str, str]) -> None:
    with pytest.raises(TokenInvalid):
        SIGNER.check_impression(impression(), *claim, now_s=NOW)


def test_parts_of_an_impression_cannot_be_shifted_into_each_other() -> None:
    token = SIGNER.impression("main", "u1", "i1", 1, "d1", now_s=NOW)
    with pytest.raises(TokenInvalid):
        SIGNER.check_impression(token, "main", "u1i", "1", "d1", now_s=NOW)


def test_an_impression_cannot_pass_as_a_cursor_nor_a_cursor_as_an_impression() -> None:
    with pytest.raises(TokenInvalid):
        SIGNER.open_cursor(impression(), "main", "u1", now_s=NOW)
    with pytest.raises(TokenInvalid):
        SIGNER.check_impression(cursor(), "main", "u1", "i1", "d1", now_s=NOW)


def test_an_impression_expires_after_a_week() -> None:
    SIGNER.check_impression(impression(), "main", "u1", "i1", "d1", now_s=NOW + IMPRESSION_TTL_S)
    with pytest.raises(TokenInvalid, match="expired"):
        SIGNER.check_impression(impression(), "main", "u1", "i1", "d1", now_s=NOW + IMPRESSION_TTL_S + 1)


def test_a_short_signing_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        Signer(b"short")


def test_the_tenant_comes_from_the_credential() -> None:
    keys = Keys.parse("shop=abcdefghijklmnop, news=ABCDEFGHIJKLMNOP")
    assert keys.tenants == ("news", "shop")
    assert keys.tenant_of("Bearer abcdefghijklmnop", None) == "shop"
    assert keys.tenant_of("bearer   ABCDEFGHIJKLMNOP ", None) == "news"
    assert keys.tenant_of(None, "ABCDEFGHIJKLMNOP") == "news"


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None),
        ("", ""),
        ("Bearer ", None),
        ("Bearer abcdefghijklmno", None),
        ("Basic abcdefghijklmnop", None),
        (None, "abcdefghijklmnop "),
        ("Bearer wrongwrongwrongwr", "abcdefghijklmnop"),
    ],
)
def test_a_missing_wrong_or_contradicted_credential_is_refused(authorization: str | None, api_key: str | None) -> None:
    with pytest.raises(Unauthorised) as refused:
        Keys.parse("shop=abcdefghijklmnop").tenant_of(authorization, api_key)
    assert "abcdefghijklmno" not in str(refused.value)


def test_without_keys_everyone_is_the_default_tenant() -> None:
    keys = Keys.parse("  ")
    assert keys.tenants == ("main",) and keys.tenant_of(None, None) == "main"
    assert keys.tenant_of("Bearer whatever", None) == "main"


@pytest.mark.parametrize("text", ["shop=short", "=abcdefghijklmnop", "sh op=abcdefghijklmnop", "abcdefghijklmnop"])
def test_unusable_keys_are_refused_without_quoting_them(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Keys.parse(text)
    assert "abcdefghijklmnop" not in str(refused.value) and "short" not in str(refused.value)
