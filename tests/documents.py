"""The documents as a reader meets them: their commands, examples, and the names they use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import TOP

DOCUMENTS = ["README.md", "REPRODUCE.md", "CONTRIBUTING.md"]
STARTS = re.compile(r"(?:[A-Z_]+=\S+ )?(?:make|dvc|feature-survival|git|docker|pip|dask|pytest|export) \S")


class Block(NamedTuple):
    """A fenced block, and the last heading above it."""

    heading: str
    language: str
    text: str


def read(document: str) -> str:
    return (TOP / document).read_text()


def blocks(document: str) -> list[Block]:
    found, heading = [], ""
    for match in re.finditer(r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            found.append(Block(heading, match[2], match[3]))
    return found


def spans(document: str) -> list[str]:
    """What stands between backticks outside fences, in one line each."""
    prose = re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands() -> list[str]:
    """Every command of every document once: lines of fenced bash, and code spans that start with a program's name.

    `dvc remote modify` belongs to the `dvc remote add` before it.
    """
    found: list[str] = []
    for document in DOCUMENTS:
        lines = [line for block in blocks(document) if block.language == "bash" for line in block.text.splitlines()]
        for line in [*lines, *filter(STARTS.match, spans(document))]:
            command = re.sub(r"\s+# .*", "", line).strip()
            if command.startswith("dvc remote modify"):
                found[-1] += f" && {command}"
            elif command:
                found.append(command)
    return list(dict.fromkeys(found))


def edits(text: str) -> Iterator[tuple[str, str, str]]:
    """File, old and new text of each hunk of a diff without line numbers."""
    for hunk in text.split("--- ")[1:]:
        file, *lines = hunk.splitlines()
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != without) for without in "+-")
        yield file, old, new


def follow(block: Block, root: Path) -> list[Path]:
    """Do to a copy of the repository what an example says: write a new file, or change lines of files that are there.

    Returns the files.
    """
    if block.language == "python":
        path = root / block.text.splitlines()[0].removeprefix("# ")
        assert not path.exists(), f"{path} is there already"
        path.write_text(block.text.partition("\n")[2])
        return [path]
    touched = []
    for file, old, new in edits(block.text):
        before = (root / file).read_text()
        assert f"\n{before}".count(f"\n{old}") == 1, f"{file}: not there, or not once:\n{old}"
        (root / file).write_text(f"\n{before}".replace(f"\n{old}", f"\n{new}")[1:])
        touched.append(root / file)
    return touched
