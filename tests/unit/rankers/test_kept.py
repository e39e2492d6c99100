"""Scores kept by profile and item: bounded in both, oldest out first."""

import threading

from models.rankers.kept import KeptScores

A, B, C = b"a", b"b", b"c"
ALL = [A, B, C, *(bytes([row]) for row in range(60))]


def test_a_profile_gets_back_what_it_was_given_and_no_other_profile_does():
    kept = KeptScores(profiles=4, scores=100)
    kept.keep("liked alien", {A: 0.5, B: -1.0})
    kept.keep("liked alien", {B: 7.0, C: 0.25})
    assert kept.of("liked alien", ALL) == {A: 0.5, B: 7.0, C: 0.25}
    assert kept.of("liked aliens", ALL) == {}
    assert len(kept) == 3


def test_the_profile_that_asked_longest_ago_is_forgotten_first():
    kept = KeptScores(profiles=2, scores=100)
    kept.keep("a", {A: 1.0})
    kept.keep("b", {A: 1.0})
    kept.of("a", ALL)
    kept.keep("c", {A: 1.0})
    assert [bool(kept.of(name, ALL)) for name in "abc"] == [True, False, True]


def test_all_profiles_together_keep_no_more_scores_than_allowed():
    kept = KeptScores(profiles=1000, scores=50)
    for n in range(200):
        kept.keep(f"p{n}", {bytes([row]): 0.0 for row in range(n % 20)})
        assert len(kept) <= 50


def test_a_profile_that_has_too_many_loses_its_own_oldest_and_no_other_profile():
    kept = KeptScores(profiles=8, scores=40)
    kept.keep("other", {A: 1.0})
    for row in range(51):
        kept.keep("", {bytes([row]): float(row)})
    assert kept.of("", ALL) == {bytes([row]): float(row) for row in range(41, 51)}
    assert kept.of("other", ALL) == {A: 1.0}
    assert len(kept) == 11


def test_only_what_is_asked_for_is_returned():
    kept = KeptScores(profiles=2, scores=100)
    kept.keep("", {A: 1.0, B: 2.0})
    assert kept.of("", [B, C]) == {B: 2.0}


def test_nothing_is_kept_where_nothing_may_be():
    kept = KeptScores(profiles=0, scores=100)
    kept.keep("a", {A: 1.0})
    assert kept.of("a", ALL) == {} and len(kept) == 0


def test_what_is_returned_is_a_copy():
    kept = KeptScores(profiles=2, scores=10)
    kept.keep("a", {A: 1.0})
    kept.of("a", ALL)[B] = 2.0
    assert kept.of("a", ALL) == {A: 1.0}


def test_any_text_is_a_profile():
    kept = KeptScores(profiles=5, scores=10)
    for text in ("", "🎬\ud800", "银翼杀手", "x" * 50_000):
        kept.keep(text, {A: 1.0})
        assert kept.of(text, ALL) == {A: 1.0}


def test_threads_leave_the_count_right():
    kept = KeptScores(profiles=8, scores=300)

    def work(seed: int) -> None:
        for n in range(500):
            kept.keep(f"p{(n * seed) % 13}", {bytes([row]): 0.0 for row in range(n % 17)})
            kept.of(f"p{n % 13}", ALL)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == sum(len(kept.of(f"p{n}", ALL)) for n in range(13)) <= 300
