import json
import subprocess
import sys
from pathlib import Path

import pytest

from crest.config import load_config
from crest.errors import ConfigError
from scraper.config import ScraperConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["demo", "brand_logos", "sportslogohistory"])
def test_configs_that_ship_load(name):
    config = load_config(ScraperConfig, CONFIGS / name / "data.json")
    assert config.data.dir == Path(f"out/{name}/data")


def test_real_site_is_asked_politely():
    config = load_config(ScraperConfig, CONFIGS / "sportslogohistory" / "data.json")
    assert len(config.source.targets) == 32
    assert config.fetch.delay_s >= 1
    assert not config.fetch.allow_hosts


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"source": {"site": "folder"}}, 'a "path" when site is "folder"'),
        ({"source": {"site": "sportslogohistory", "url": "x.example"}}, 'a "url" that begins with http'),
        ({"pack": {"val_share": 0.6, "test_share": 0.4}}, "sum to less than 1"),
        ({"fetch": {"delays_s": 1}}, "did you mean fetch.delay_s"),
    ],
)
def test_settings_that_do_not_fit_are_told(tmp_path, section, expected):
    values = {"data": {"dir": "x"}, "source": {"site": "folder", "path": "y"}, **section}
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=expected):
        load_config(ScraperConfig, tmp_path / "c.json")


@pytest.mark.parametrize("command", ["scraper", "scraper.caption", "scraper.pack"])
def test_help_loads_nothing_heavy(command):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('{command}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'PIL', 'bs4', 'requests', 'scipy', 'transformers', 'webdataset'}\n"
        "print(sorted(set(sys.modules) & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: python -m " + command in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_bad_input_is_one_sentence_and_a_failed_exit(tmp_path):
    (tmp_path / "empty").mkdir()
    values = {
        "data": {"dir": str(tmp_path / "data")},
        "source": {"site": "folder", "path": str(tmp_path / "empty")},
    }
    (tmp_path / "c.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "scraper", "--config", str(tmp_path / "c.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is empty, expected a folder of pictures" in done.stderr
    assert not (tmp_path / "data").exists()
