"""README and the pages: what they show runs, what cannot run says why, and every command on them is one that exists.

The blocks of the pages run in one folder, in the order of PAGES: a page may use the cache that the start page makes.
A block that cannot run offline in seconds has `<!-- not run: why -->` on the line before it.
"""

import re
import shlex
from glob import glob
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.core import TyperGroup

import bird
import bird_cache.command
import bird_pipelines
from bird_pipelines.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        *("index", "your-own-data", "teachers", "methods", "own-parts", "reading-the-numbers", "audit", "cache"),
        *("cache-by-itself", "scaling"),
    )
]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+?) -->\n)?^```(?P<language>sh|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    why: str | None
    """it is not run"""


def blocks(page):
    text = page.read_text()
    others = re.findall(r"^```(?!sh$|python$|\{|$).*", text, re.MULTILINE)
    assert not others, f"{page.name}: not sh, python or a directive: {others}"
    return [Block(found["language"], found["text"], found["why"]) for found in FENCE.finditer(text)]


def commands(text):
    """The commands of a shell block, as lists of words; a pattern stands for the files it fits, as in a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield [each for word in words for each in (sorted(glob(word)) or [word])]


def run(block, names):
    """Run a block here: a process for each command would spend its time on loading torch."""
    if block.language == "python":
        exec(compile(block.text, "<page>", "exec"), names)
        return
    for program, *words in commands(block.text):
        if program == "bird-cache":
            assert bird_cache.command.main(words) == 0
            continue
        assert program == "bird", program
        app(words, standalone_mode=False)


@pytest.mark.slow
def test_every_block_of_the_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        names = {"__name__": page.stem}
        for block in blocks(page):
            if block.why is None:
                print(f"--- {page.name}:\n{block.text}")
                run(block, names)
    assert Path("report.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_every_command_exists(page):
    found = [words for block in blocks(page) if block.language == "sh" for words in commands(block.text)]
    for program, *words in found:
        if program != "bird":
            continue
        command, context = typer.main.get_command(app), None
        while isinstance(command, TyperGroup):
            word, *words = words
            assert word in command.commands, f"bird {word}"
            context, command = typer.Context(command, parent=context), command.commands[word]
        command.make_context(word, words, parent=context)  # parses; runs nothing


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("distil --cache c --out o", "bird distil"),
        ("distill --cache c --out o --lamda 1", "--lamda"),
        ("distill --out o", "cache"),
    ],
)
def test_a_command_that_does_not_exist_is_found(tmp_path, words, why):
    page = tmp_path / "page.md"
    page.write_text(f"```sh\nbird {words}\n```\n")
    with pytest.raises(Exception, match=why):
        test_every_command_exists(page)


def test_every_public_name_has_a_page():
    page = (ROOT / "docs" / "api.md").read_text()
    for package in (bird, bird_cache, bird_pipelines):
        whole = re.search(rf"automodule:: {package.__name__}\n   :members:", page)
        missing = [name for name in package.__all__ if not whole and f"autoclass:: {name}\n" not in page]
        assert missing in ([], ["__version__"]), package.__name__


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\(([^)#]+)\)|^\[\w+\]: (\S+)$", README.read_text(), re.MULTILINE)
    missing = [link for pair in links for link in pair if link and not (ROOT / link).exists()]
    assert links
    assert not missing


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()) < 150_000
