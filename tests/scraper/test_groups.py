from scraper.groups import Groups


def test_merging_is_transitive_and_order_does_not_matter() -> None:
    one, other = Groups(), Groups()
    one.merge(("a", "b"))
    one.merge(("c", "d"))
    one.merge(("b", "d"))
    other.merge(("d", "b", "c", "a"))
    assert [one.name(key) for key in "abcd"] == ["a"] * 4 == [other.name(key) for key in "abcd"]


def test_unmerged_keeps_its_name() -> None:
    groups = Groups()
    groups.merge(("a", "b"))
    assert groups.name("c") == "c"
