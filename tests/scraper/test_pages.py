import pytest

from scraper.fetch import Answer
from scraper.pages import page_text, refusal_of_empty, visible_words
from scraper.refused import Refused


def answer(content: bytes, kind: str = "", final_url: str = "http://x.example/a/") -> Answer:
    return Answer("http://x.example/a/", final_url, content, {"content-type": kind}, "", None, False)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("<p>é</p>".encode(), ""),
        ("<p>é</p>".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        ('<meta charset="windows-1252"><p>é</p>'.encode("cp1252"), ""),
        (b"\xff\xfe" + "<p>é</p>".encode("utf-16-le"), ""),
        (b"\xef\xbb\xbf" + "<p>é</p>".encode(), "text/html; charset=latin-1"),
        ("<p>é</p>".encode(), "text/html; charset=never-heard-of"),
        ("<p>é</p>".encode(), "text/html; charset=rot13"),
    ],
)
def test_page_is_read_in_its_encoding(content: bytes, kind: str) -> None:
    assert page_text(answer(content, kind)).endswith("<p>é</p>")


@pytest.mark.parametrize("content", [b"", b"plain words", b"\x89PNG\r\n\0<p>", b'{"a": 1}'])
def test_what_is_no_page_is_refused(content: bytes) -> None:
    with pytest.raises(Refused) as refused:
        page_text(answer(content, "text/html"))
    assert refused.value.reason == "not_html"


def test_page_of_many_megabytes_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        page_text(answer(b"<p>" * 2_000_000))
    assert refused.value.reason == "too_large"


@pytest.mark.parametrize(
    ("html", "final_url", "reason"),
    [
        ("<form><input name=p type='password'></form>", "http://x.example/a/", "login_page"),
        ("<p>Welcome</p>", "http://x.example/wp-login.php?a=1", "login_page"),
        ("<p>Welcome</p>", "http://x.example/sign-in/", "login_page"),
        ("<p>Welcome</p>", "http://x.example/designing-logos/", "nothing_found"),
        ("<noscript>You need to enable JavaScript to run this app.</noscript>", "", "wall_page"),
        ("<h1>Just a moment...</h1>", "", "wall_page"),
        ("<p>Before you continue, accept all our cookies</p>", "", "wall_page"),
        ("<p>" + "many words " * 300 + "enable JavaScript</p><input type=password>", "", "nothing_found"),
        ("<script>'enable JavaScript'</script><!-- captcha -->", "", "nothing_found"),
    ],
)
def test_empty_page_is_called_what_it_is(html: str, final_url: str, reason: str) -> None:
    found = answer(html.encode(), final_url=final_url or "http://x.example/a/")
    assert refusal_of_empty(found, html, "cards").reason == reason


def test_hostile_page_takes_no_time() -> None:
    for piece in ("<script", "<!--", "<", "<style>"):
        assert isinstance(visible_words(piece * 100_000), str)
