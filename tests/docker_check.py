"""What can be known of the container without an engine: `make docker-check`, one line a check.

Dockerfile, .dockerignore and compose.yaml are read, hadolint reads the Dockerfile too, and the image's own install
steps are replayed in an empty folder from the files the image copies. Not replayed: what needs root or the base image.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from docker.utils.build import PatternMatcher, exclude_paths
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

TOP = Path(__file__).resolve().parent.parent
STAYS = (".ci/", ".github/")  # tracked, of no use in the image
PINNED = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
LARGEST = 20_000_000  # bytes of one file
LARGEST_TREE = 100_000_000  # bytes of all, a filled store/ included
# Where tokens lie in people's checkouts; none may reach the image though none need exist.
SECRETS = (".env", ".netrc", ".dvc/config.local", ".git/config", "hf_token", "id_ed25519", "key.pem", "src/.env")
SECRET_NAME = re.compile(r"(^|/)(\.env.*|\.netrc|config\.local|id_[a-z0-9]+|.*\.(pem|key|p12))$")
SECRET_TEXT = re.compile(rb"\bhf_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----")
SECRET_VARIABLE = re.compile(r"\b\w*(TOKEN|SECRET|PASSWORD|ACCESS_KEY)\w*\b")


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, continued lines joined."""

    name: str
    value: str


class Copy(NamedTuple):
    """The sources and the destination of a COPY, the latter below the WORKDIR."""

    sources: list[str]
    to: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """What a Dockerfile says, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [Instruction(name.upper(), value.strip()) for name, _, value in (line.partition(" ") for line in joined)]


def values(root: Path, name: str) -> list[str]:
    """The values of all instructions of one name."""
    return [instruction.value for instruction in instructions(root / "Dockerfile") if instruction.name == name]


def copied(value: str) -> Copy:
    """A COPY's words, flags left out."""
    *sources, to = [word for word in shlex.split(value) if not word.startswith("--")]
    return Copy(sources, to)


def patterns(root: Path) -> list[str]:
    """The lines of .dockerignore."""
    lines = (line.strip() for line in (root / ".dockerignore").read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def context(root: Path) -> set[str]:
    """The files a build would be sent, by Docker's own rules."""
    return {path for path in exclude_paths(str(root), patterns(root)) if (root / path).is_file()}


def known(root: Path) -> set[str]:
    """The files git tracks or would offer to track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (root / name).is_file()}


def base_is_pinned(root: Path) -> Iterator[str]:
    """Every FROM names a tag and a digest."""
    for value in values(root, "FROM") or ["nothing"]:
        if not PINNED.fullmatch(value.partition(" AS ")[0]):
            yield f"FROM {value}: not pinned; image:tag@sha256:... is needed"


def copies_exist(root: Path) -> Iterator[str]:
    """Every path a COPY names is known to git and reaches the build."""
    tracked, sent = known(root), context(root)
    for value in values(root, "COPY"):
        for source in copied(value).sources:
            if not under(tracked, source):
                yield f"COPY {source}: git has no such file or folder"
            elif not under(sent, source):
                yield f"COPY {source}: shut out by .dockerignore"


def under(files: set[str], place: str) -> list[str]:
    """Those of `files` that are `place` or lie in it."""
    place = os.path.normpath(place)
    return sorted(file for file in files if place in (".", file) or file.startswith(f"{place}/"))


def image_holds_the_repository(root: Path) -> Iterator[str]:
    """What git knows reaches the image, and nothing else does."""
    tracked, sent = known(root), context(root)
    wanted = {name for name in tracked if not name.startswith(STAYS)}
    for name in sorted(wanted - sent):
        yield f"{name}: shut out by .dockerignore; add a line !{name.partition('/')[0]}"
    for name in sorted(sent - wanted):
        yield f"{name}: reaches the image, but git does not know it; shut it out in .dockerignore"


def nothing_secret_or_large(root: Path) -> Iterator[str]:
    """No token, no key and no big file is copied; where tokens usually lie is shut out."""
    matcher = PatternMatcher(patterns(root))
    for name in SECRETS:
        if not matcher.matches(name):
            yield f"{name}: would reach the image; shut it out in .dockerignore"
    total = 0
    for name in sorted(context(root)):
        size = (root / name).stat().st_size
        total += size
        if SECRET_NAME.search(name) or SECRET_TEXT.search((root / name).read_bytes()):
            yield f"{name}: looks like a credential"
        if size > LARGEST:
            yield f"{name}: {size / 1e6:.0f} MB; at most {LARGEST / 1e6:.0f} MB a file"
    if total > LARGEST_TREE:
        yield f"{total / 1e6:.0f} MB are copied; at most {LARGEST_TREE / 1e6:.0f} MB"


def no_token_in_the_image(root: Path) -> Iterator[str]:
    """No ARG or ENV would keep a credential in a layer: they are given at run time."""
    for name in ("ARG", "ENV"):
        for value in values(root, name):
            if found := SECRET_VARIABLE.search(value):
                yield f"{name} {found.group()}: stays in the image; give it at run time (docker run --env)"


def user_is_not_root(root: Path) -> Iterator[str]:
    """The last USER is a number other than 0."""
    user = (values(root, "USER") or ["nobody said"])[-1]
    if not re.fullmatch(r"[1-9]\d*(:\d+)?", user):
        yield f"USER {user}: a uid other than 0 is needed"


def packages_are_pinned(root: Path) -> Iterator[str]:
    """Every line of requirements.lock is one version, and the environment the image makes lies outside its WORKDIR."""
    for line in (root / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#") and not re.fullmatch(r"[\w.-]+==\S+", line):
            yield f"requirements.lock: {line!r} is not NAME==VERSION"
    workspace = (values(root, "WORKDIR") or ["/"])[-1]
    venv = [found.group(1) for value in values(root, "ENV") if (found := re.search(r"\bVENV=(\S+)", value))]
    if not any("make env" in value for value in values(root, "RUN")) or not venv:
        yield "no RUN makes the environment (make env with VENV set)"
    elif venv[-1].startswith(f"{workspace.rstrip('/')}/"):
        yield f"VENV={venv[-1]} lies in {workspace}: a mounted checkout would hide it"


def command_ends_with_the_claims(root: Path) -> Iterator[str]:
    """CMD, a JSON list, runs the study and then prints the table of claims."""
    try:
        words = json.loads((values(root, "CMD") or ["none"])[-1])
    except json.JSONDecodeError:
        yield "CMD is not a JSON list of words"
        return
    steps = [step.strip() for step in words[-1].split("&&")]
    if "feature-survival grid --allow-missing" not in steps or steps[-1] != "feature-survival verdicts":
        yield f"CMD: {words[-1]!r} does not run the study and end with its claims"


def compose_is_valid(root: Path) -> Iterator[str]:
    """compose.yaml parses, refers to what exists, pins its images and holds no credential."""
    try:
        content = YAML(typ="safe").load(root / "compose.yaml")
    except YAMLError as error:
        yield f"compose.yaml: not YAML ({str(error).splitlines()[0]})"
        return
    services: dict[str, Any] = content.get("services") if isinstance(content, dict) else None
    if not services:
        yield "compose.yaml: no services"
        return
    volumes = set(content.get("volumes") or {})
    for name, service in services.items():
        place = f"compose.yaml: {name}"
        extended = service.get("extends", {}).get("service")
        if extended and extended not in services:
            yield f"{place}: extends {extended!r}, which is no service"
        if "build" in service and not (root / service["build"] / "Dockerfile").is_file():
            yield f"{place}: build: {service['build']!r} holds no Dockerfile"
        if not {"build", "extends"} & set(service) and not PINNED.fullmatch(service.get("image", "")):
            yield f"{place}: image {service.get('image')!r} is not pinned; image:tag@sha256:... is needed"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source not in volumes and not (source.startswith(".") and (root / source).exists()):
                yield f"{place}: volume {source!r} is neither declared nor a folder here"
        for variable in service.get("environment", []):
            if "=" in variable or isinstance(service["environment"], dict):
                yield f"{place}: environment {variable!r}: only names, handed on from the shell"


def hadolint(root: Path) -> Iterator[str]:
    """hadolint's findings; the Makefile puts it into .hadolint."""
    command = [root / ".hadolint/bin/hadolint", "--no-color", "Dockerfile"]
    linted = subprocess.run(command, cwd=root, capture_output=True, text=True)
    yield from (linted.stdout + linted.stderr).splitlines()


def install_steps_replayed(root: Path) -> Iterator[str]:
    """Do in an empty folder what the image does after apt-get: copy, make the environment, copy the rest, start it.

    Each RUN sees what was copied before it and nothing else. Yields the first step that fails.
    """
    with tempfile.TemporaryDirectory(prefix="docker-check-") as folder:
        yield from replay(root, Path(folder))


def replay(root: Path, folder: Path) -> Iterator[str]:
    """The steps, with the workspace and the environment in `folder`."""
    workspace, venv = folder / "workspace", folder / "venv"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "MAKE"))}
    environment = {
        **kept,
        "VENV": str(venv),
        "HOME": str(folder),
        "PYTHON": sys.executable,
        "PATH": f"{venv}/bin:{os.defpath}",
    }
    sent = context(root)
    steps: list[str | Copy] = []
    for name, value in instructions(root / "Dockerfile"):
        if name == "COPY":
            steps.append(copied(value))
        elif name == "RUN" and not value.startswith(("apt-get", "python3 ")):  # of the last, only what needs no root
            steps.append(value if "make " in value else "git init")
    steps += ["python -m pip check", "feature-survival --help", "feature-survival check", "dvc stage list --name-only"]
    for entry in values(root, "ENTRYPOINT"):  # the corpus is there for DVC, though nobody made it
        steps.append(shlex.join([*json.loads(entry), "dvc", "repro", "data.dvc"]))
    for step in steps:
        if isinstance(step, Copy):
            place(root, step, sent, workspace)
            continue
        done = subprocess.run(["sh", "-c", step], cwd=workspace, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines() or ["it said nothing"]
            yield f"{step}: exit code {done.returncode}: {said[-1]}"
            return


def place(root: Path, copy: Copy, sent: set[str], workspace: Path) -> None:
    """Do a COPY: of a folder its contents, of a file the file."""
    for source in copy.sources:
        for file in under(sent, source):
            inside = Path(file).name if file == os.path.normpath(source) else os.path.relpath(file, source)
            target = workspace / copy.to / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, target)


READ: list[Callable[[Path], Iterator[str]]] = [  # from the files alone, in no time
    base_is_pinned,
    copies_exist,
    image_holds_the_repository,
    nothing_secret_or_large,
    no_token_in_the_image,
    user_is_not_root,
    packages_are_pinned,
    command_ends_with_the_claims,
    compose_is_valid,
]
CHECKS = [*READ, hadolint, install_steps_replayed]


def main() -> int:
    """Every check's line; 1 where one failed."""
    bad = 0
    for check in CHECKS:
        faults = list(check(TOP))
        print(
            f"{'FAILED' if faults else 'ok':6}  {check.__name__.replace('_', ' ')}",
            *faults,
            sep="\n        ",
            flush=True,
        )
        bad += bool(faults)
    print(f"{len(CHECKS) - bad} of {len(CHECKS)} checks hold; no container engine was used: no image was built or run")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
