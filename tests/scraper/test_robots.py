import pytest

from scraper.robots import parse_robots

ROBOTS = """
# manners
User-agent: BadBot
Disallow: /

User-agent: *
Crawl-delay: 2.5
Disallow: /private/   # members
Disallow: /*.zip$
Disallow: /shop
Allow: /shop/logos/
Disallow:
"""


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    [
        ("/", True),
        ("/private/a.png", False),
        ("/privately", True),
        ("/a/b.zip", False),
        ("/a/b.zip?x=1", True),
        ("/shop/shirts", False),
        ("/shop/logos/a.png", True),
        ("/shop/logos/../shirts", False),
        ("/a/../private/b", False),
        ("/a/%2e%2e/private/b", False),
        ("/./private/", False),
        ("/%70rivate/a", False),
        ("", True),
    ],
)
def test_longest_rule_decides(path: str, is_allowed: bool) -> None:
    assert parse_robots(ROBOTS, "crest-scraper/0.1").allows(f"https://x.example{path}") is is_allowed


def test_group_that_names_us_wins_over_the_star() -> None:
    robots = parse_robots(ROBOTS + "\nUser-agent: crest-scraper\nDisallow: /a\n", "crest-scraper/0.1")
    assert robots.allows("https://x.example/private/")
    assert not robots.allows("https://x.example/a")
    assert robots.delay_s == 0.0


def test_crawl_delay_is_read() -> None:
    assert parse_robots(ROBOTS, "crest-scraper").delay_s == 2.5


def test_several_agents_share_the_rules_below_them() -> None:
    robots = parse_robots("User-agent: a\nUser-agent: crest\nDisallow: /x\n", "crest")
    assert not robots.allows("https://x.example/x")


def test_nonsense_allows_everything() -> None:
    assert parse_robots("<html>no such file</html>\nDisallow /", "crest").allows("https://x.example/x")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/a*b*c", "/a--b--c--", True),
        ("/a*b*c$", "/a--b--c--", False),
        ("/a*b*c$", "/a--b--c", True),
        ("/*$", "/anything", True),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("*", "/", True),
        ("/a*a$", "/a", False),
        ("/a**b", "/ab", True),
        ("$", "/", False),
        ("/s?q=a%20b", "/s?q=a%20b&x", True),
        ("/s?q=%41", "/s?q=A", True),
        ("/a%2Ab", "/axb", False),
        ("/a%2Ab", "/a*b", True),
    ],
)
def test_wildcards(pattern: str, path: str, matches: bool) -> None:
    robots = parse_robots(f"User-agent: *\nDisallow: {pattern}\n", "crest")
    assert robots.allows(f"https://x.example{path}") is not matches


def test_hostile_pattern_takes_no_time() -> None:
    robots = parse_robots("User-agent: *\nDisallow: /" + "*a" * 2000 + "b$\n", "crest")
    assert robots.allows("https://x.example/" + "a" * 5000)


def test_only_the_first_half_megabyte_counts() -> None:
    long = b"User-agent: *\nDisallow: /a\n" + b"# comment\n" * 60_000 + b"Disallow: /b\n"
    robots = parse_robots(long, "crest")
    assert not robots.allows("https://x.example/a")
    assert robots.allows("https://x.example/b")
