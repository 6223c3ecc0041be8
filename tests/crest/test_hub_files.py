"""A name, an address or a path becomes a verified file of this machine; offline it is said in two seconds."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crest.errors import FetchError, WeightsError
from crest.hub_files import PUBLISHED, hub_file, is_remote, local_file, split_unet
from tests.crest.hub_server import HubServer

CONTENT = os.urandom(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PLACE = "club/prior:v1/latest.pth"
OFFLINE_S = 2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    folder = tmp_path / "repository"
    (folder / "v1").mkdir(parents=True)
    (folder / "v1" / "latest.pth").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer({"club/prior": folder}) as server:
        server.large_bytes = 1000
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_file_of_a_hub_comes_verified_by_what_the_hub_says(hub: HubServer, tmp_path: Path) -> None:
    file = local_file(PLACE)
    assert file.path == tmp_path / "home" / "crest" / "files" / "club--prior@main" / "v1" / "latest.pth"
    assert file.path.read_bytes() == CONTENT
    assert (file.size_bytes, file.sha256, file.known_by) == (len(CONTENT), SHA256, "the hub")
    assert file.said == f"{file.path}: 200000 bytes as expected, SHA-256 {SHA256}, as the hub told"


def test_it_is_asked_for_once_and_then_serves_without_a_hub(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local_file(PLACE)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert local_file(PLACE) == first
    assert not hub.requests


def test_a_revision_is_kept_apart(hub: HubServer) -> None:
    one, other = local_file(PLACE), local_file(PLACE.replace(":", "@v1:"))
    assert one.sha256 == other.sha256
    assert one.path != other.path
    assert "@v1" in str(other.path)


def test_what_the_user_knows_is_compared(hub: HubServer) -> None:
    assert local_file(PLACE, sha256=SHA256.upper()).known_by == "you"
    with pytest.raises(WeightsError, match=rf"has the SHA-256 {SHA256}, expected {'0' * 64}"):
        local_file(PLACE, sha256="0" * 64)
    with pytest.raises(FetchError, match=r"found the sha256 abc, expected 64 hex digits"):
        local_file(PLACE, sha256="abc")


def test_a_hub_that_has_another_file_is_told_before_it_comes(hub: HubServer) -> None:
    with pytest.raises(WeightsError, match=r"it was changed there: name the revision"):
        local_file(PLACE, sha256="0" * 64)
    assert not hub.asked


def test_a_file_that_was_damaged_on_its_way_is_removed(hub: HubServer, tmp_path: Path) -> None:
    class Liar(HubServer):
        def part(self, path: str, told: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            status, headers, body = super().part(path, told)
            return status, headers, b"x" + body[1:]

    with Liar(hub.repositories) as liar:
        hub.elsewhere = liar.url
        with pytest.raises(WeightsError, match=rf"has the SHA-256 \w+, expected {SHA256}; .*was removed"):
            local_file(PLACE)
    assert not list((tmp_path / "home").rglob("latest.pth*[!k]"))


def test_a_broken_line_is_taken_up(hub: HubServer) -> None:
    hub.cuts = [150_000]
    assert local_file(PLACE).path.read_bytes() == CONTENT
    assert [headers.get("range") for path, headers in hub.asked if path.startswith("/elsewhere")] == [
        None,
        "bytes=150000-",
    ]


def test_a_token_is_shown_to_the_hub_and_to_nobody_else(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with HubServer(hub.repositories) as other:
        hub.elsewhere = other.url
        local_file(PLACE)
        assert [headers.get("authorization") for _, headers in hub.asked] == ["Bearer secret"]
        assert [headers.get("authorization") for _, headers in other.asked] == [None]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("club/nobody:latest.pth", "has no repository club/nobody"),
        ("club/prior:v2/latest.pth", "has no file v2/latest.pth"),
        ("club/prior@v9:v1/latest.pth", "has no (revision v9|repository club/prior)"),
    ],
)
def test_what_a_hub_has_not_is_told(hub: HubServer, place: str, says: str) -> None:
    with pytest.raises(FetchError, match=rf"{place}: {hub.url} {says}; check the name"):
        local_file(place)


def test_an_address_is_fetched_and_what_is_unknown_is_said(hub: HubServer) -> None:
    url = f"{hub.url}/elsewhere/club/prior/v1/latest.pth"
    file = local_file(url)
    assert file.path.name == "latest.pth"
    assert file.known_by == ""
    assert file.said.endswith(f"200000 bytes, SHA-256 {SHA256}, which nobody told beforehand")
    assert local_file(f"{url}?download=true").path != file.path
    assert local_file(url, sha256=SHA256).known_by == "you"


def test_a_path_is_verified_where_something_is_known(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(CONTENT)
    assert local_file(str(path)).sha256 == SHA256
    assert local_file(f"{path}#2", sha256=SHA256).path == path
    with pytest.raises(WeightsError, match="name another file, or copy it again"):
        local_file(str(path), size_bytes=5)
    with pytest.raises(
        FetchError, match=r'no such file; a file of the hub is written "owner/name:path/in/it"'
    ):
        local_file(str(tmp_path / "y.pth"))


def test_a_kept_file_that_somebody_wrote_to_is_had_again(hub: HubServer) -> None:
    file = local_file(PLACE)
    file.path.write_bytes(b"something else")
    assert local_file(PLACE).path.read_bytes() == CONTENT


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://hub.invalid"])
@pytest.mark.parametrize("place", [PLACE, "{endpoint}/latest.pth"])
def test_offline_is_told_in_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, place: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    started = time.monotonic()
    with pytest.raises(
        FetchError, match=rf"is not on this machine, and {endpoint} can't be reached \(.*connect"
    ):
        local_file(place.format(endpoint=endpoint))
    assert time.monotonic() - started < OFFLINE_S
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        local_file(place.format(endpoint=endpoint))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "is_one"),
    [
        ("laion/DALLE2-PyTorch:prior/latest.pth", True),
        ("laion/DALLE2-PyTorch@refs/pr/3:prior/latest.pth", True),
        ("laion/DALLE2-PyTorch:decoder/v1.0.2/latest.pth#2", True),
        ("https://example.org/latest.pth", True),
        ("owner/name:../../etc/passwd", False),
        ("owner/name:/etc/passwd", False),
        ("owner/name@..:x", False),
        ("stock/prior", False),
        ("out/demo/runs/prior", False),
        ("hf-hub:laion/CLIP-ViT-B-32", False),
        ("C:\\weights\\latest.pth", False),
        ("/srv/a:b/latest.pth", False),
    ],
)
def test_places_are_told_from_paths(place: str, is_one: bool) -> None:
    assert is_remote(place) is is_one


def test_the_u_net_of_a_place(tmp_path: Path) -> None:
    assert split_unet("owner/name:latest.pth#2") == ("owner/name:latest.pth", 2)
    assert split_unet("owner/name:latest.pth") == ("owner/name:latest.pth", None)
    (tmp_path / "run#2").mkdir()
    assert split_unet(str(tmp_path / "run#2")) == (str(tmp_path / "run#2"), None)


def test_the_table_names_files_and_their_configs() -> None:
    for place, file in PUBLISHED.items():
        assert hub_file(place) is not None
        assert hub_file(file.config) is not None
        assert file.sha256 is None or len(file.sha256) == 64
    assert PUBLISHED["laion/DALLE2-PyTorch:decoder/v1.0.2/latest.pth"].size_bytes == 3_930_800_893


def test_asking_for_a_file_imports_nothing_heavy() -> None:
    code = "import sys, crest.hub_files; print('torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
