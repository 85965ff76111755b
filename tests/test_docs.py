"""The Python blocks of the README and of every page under ``docs/`` run as they stand.

The blocks of one page run in order and share their names, as if typed into one session. A block
is left out if its first line is a comment ``# not executed: <reason>``, which the reader sees too.
"""

from __future__ import annotations

import re

import pytest

from tests.modules import PARTS, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?P<indent> *)```(?:python|py)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL
)
LEFT_OUT = re.compile(r"# not executed: \S")


def python_blocks(text):
    """Returns the code blocks to be executed, each with the line of the page it starts at."""
    blocks = []
    for match in BLOCK.finditer(text):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        if not LEFT_OUT.match(code):
            blocks.append((text.count("\n", 0, match.start("code")), code))
    return blocks


def execute(page, text):
    """Executes the blocks of a page; an error shows the page's own file and line."""
    scope = {"__name__": "__main__"}
    for line, code in python_blocks(text):
        exec(compile("\n" * line + code, str(page), "exec"), scope)
    return scope


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(page, page.read_text(encoding="utf-8"))


def test_blocks_share_names_and_marked_ones_are_left_out():
    blocks = ["a = 1", "# not executed: needs a GPU\na = 2", "b = a"]
    page = "\n\n".join(f"```python\n{block}\n```" for block in blocks)
    assert execute("page.md", page)["b"] == 1


def test_an_error_names_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as error:
        execute("page.md", "# title\n\n```python\n1 / 0\n```\n")
    assert error.traceback[-1].lineno + 1 == 4


def test_a_mark_without_a_reason_is_no_mark():
    assert len(python_blocks("```python\n# not executed:\nx = 1\n```\n")) == 1


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_page_in_the_reference(part):
    name = part.removeprefix("pyrogen.")
    page = ROOT / "docs" / "reference" / f"{name}.md"
    assert f".. automodule:: {part}\n" in page.read_text()
    assert re.search(rf"^{name}$", (page.parent / "index.md").read_text(), re.MULTILINE)
