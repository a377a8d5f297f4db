"""The pages: their code runs as it stands, from top to bottom, and their links lead somewhere."""

import re

import pytest
import torch

from utils.box import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def run_code_of(page):
    """Run the Python blocks of a page in one namespace, in the project's folder, and return it."""
    names = {}
    with torch.enable_grad():  # restored afterwards, whatever the page makes of it
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S), 1):
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def in_the_folder_of_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_readme_runs():
    names = run_code_of(ROOT / "README.md")
    assert names["thumbnail"].size == (48, 32) and names["samples"].shape == (4, 3, 32, 32)
    assert names["bits"].shape == (1,) and len(names["details"]) == 7


def test_the_method_runs():
    names = run_code_of(ROOT / "docs" / "method.md")
    assert names["word"] == "abacab" and len(names["stages"]) == 8 and names["after"] < names["before"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [link for link in links if not link.startswith("https://")]
    for link in inside:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if heading else ()
        assert not heading or heading in {title.lower().replace(" ", "-") for title in titles}, link
