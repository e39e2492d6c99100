from dataclasses import replace

from models.rankers.profile_text import profile_text


def test_a_profile_names_liked_titles_newest_first_and_no_id(catalog, make_query):
    text = profile_text(make_query(("i4", "i9", "i10")), catalog)  # rated 1, 2, 3
    assert text == "Liked: film 10 thriller; film 9 comedy. Did not like: film 4 drama."


def test_an_item_is_named_once_and_the_list_is_bounded(catalog, make_query):
    text = profile_text(make_query(tuple(f"i{n % 12}" for n in range(36))), catalog, titles=4)
    liked = text.split(".")[0]
    assert liked.count(";") == 3
    assert len(set(liked.split(";"))) == 4


def test_a_user_without_history_has_an_empty_profile(catalog, make_query):
    assert profile_text(make_query(()), catalog) == ""
    assert profile_text(replace(make_query(), personal=False), catalog) == ""


def test_seed_items_are_in_the_profile(catalog, make_query):
    assert profile_text(make_query((), seed_items=("i3",)), catalog) == "Liked: film 3 western."


def test_interests_in_words_come_first_and_only_where_the_user_may_be_known(make_query, catalog) -> None:
    query = make_query(("i3",))
    words = replace(query, user=replace(query.user, summary="You seek western titles."))
    assert profile_text(words, catalog) == f"You seek western titles. {profile_text(query, catalog)}"
    assert profile_text(replace(words, personal=False), catalog) == ""
