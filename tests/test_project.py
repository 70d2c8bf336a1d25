"""What is said of the project agrees with it."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from atnet.cli import main
from atnet.version import __version__

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (__version__, "Apache-2.0")
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


def test_the_readme_is_short_and_leads_to_files_that_there_are():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 8000
    for page in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{page}: {link}"


def test_issue_templates_are_yaml_that_asks_for_the_environment():
    templates = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()}
    asked = [part["attributes"]["label"] for part in templates["bug.yml"]["body"]]
    assert any("atnet env" in one for one in asked)


def test_env_says_what_a_report_needs(capsys):
    main(["env"])
    rows = dict(re.findall(r"^\| (\S+) \| (.*) \|$", capsys.readouterr().out, re.M))
    assert rows["atnet"] == __version__
    assert rows["python"] == ".".join(map(str, sys.version_info[:3]))
    assert rows["torch"]
    assert rows["device"] in ("cpu", "cuda", "mps")
    assert "command" not in rows, "a command may name private folders"


def test_the_package_is_a_module_that_can_be_run():
    said = subprocess.run([sys.executable, "-m", "atnet", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == __version__
