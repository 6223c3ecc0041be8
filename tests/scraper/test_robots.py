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
