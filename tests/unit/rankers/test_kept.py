"""Scores kept by profile and item: bounded in both, oldest out first."""

import threading

from models.rankers.kept import KeptScores

A, B, C = b"a", b"b", b"c"


def test_a_profile_gets_back_what_it_was_given_and_no_other_profile_does():
    kept = KeptScores(profiles=4, scores=100)
    kept.keep("liked alien", {A: 0.5, B: -1.0})
    kept.keep("liked alien", {B: 7.0, C: 0.25})
    assert kept.of("liked alien") == {A: 0.5, B: 7.0, C: 0.25}
    assert kept.of("liked aliens") == {}
    assert len(kept) == 3


def test_the_profile_that_asked_longest_ago_is_forgotten_first():
    kept = KeptScores(profiles=2, scores=100)
    kept.keep("a", {A: 1.0})
    kept.keep("b", {A: 1.0})
    kept.of("a")
    kept.keep("c", {A: 1.0})
    assert [bool(kept.of(name)) for name in "abc"] == [True, False, True]


def test_all_profiles_together_keep_no_more_scores_than_allowed():
    kept = KeptScores(profiles=1000, scores=50)
    for n in range(200):
        kept.keep(f"p{n}", {bytes([row]): 0.0 for row in range(n % 20)})
        assert len(kept) <= 50
    kept.keep("large", {bytes([row]): 0.0 for row in range(51)})
    assert len(kept) == 0


def test_nothing_is_kept_where_nothing_may_be():
    kept = KeptScores(profiles=0, scores=100)
    kept.keep("a", {A: 1.0})
    assert kept.of("a") == {} and len(kept) == 0


def test_what_is_returned_is_a_copy():
    kept = KeptScores(profiles=2, scores=10)
    kept.keep("a", {A: 1.0})
    kept.of("a")[B] = 2.0
    assert kept.of("a") == {A: 1.0}


def test_any_text_is_a_profile():
    kept = KeptScores(profiles=5, scores=10)
    for text in ("", "🎬\ud800", "银翼杀手", "x" * 50_000):
        kept.keep(text, {A: 1.0})
        assert kept.of(text) == {A: 1.0}


def test_threads_leave_the_count_right():
    kept = KeptScores(profiles=8, scores=300)

    def work(seed: int) -> None:
        for n in range(500):
            kept.keep(f"p{(n * seed) % 13}", {bytes([row]): 0.0 for row in range(n % 17)})
            kept.of(f"p{n % 13}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == sum(len(kept.of(f"p{n}")) for n in range(13)) <= 300
