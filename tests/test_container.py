"""`make docker-check` finds what is broken: one damage to a copy of the repository's files, one fault that names it."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import docker_check
import pytest
from conftest import TOP


@pytest.fixture
def copy(tmp_path) -> Path:
    """The files git knows, in a repository of their own that knows the same."""
    for name in docker_check.known(TOP):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def replaced(file: str, old: str, new: str) -> Callable[[Path], object]:
    """Replace a text that must be there."""

    def damage(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new))

    return damage


def written(file: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_text(content)


def added(file: str, line: str) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        with (root / file).open("a") as stream:
            stream.write(f"{line}\n")

    return damage


def test_the_files_as_they_are_pass_every_check_that_reads():
    assert [fault for check in docker_check.READ for fault in check(TOP)] == []


BROKEN = [
    ("base_is_pinned", replaced("Dockerfile", "@sha256:7c", "@sha256:7"), "FROM nvidia/cuda:13.0.3-base-ubuntu24.04@"),
    ("base_is_pinned", replaced("Dockerfile", "\nFROM ", "\n# FROM "), "FROM nothing: not pinned"),
    (
        "copies_exist",
        replaced("Dockerfile", "requirements.lock py", "requirements.txt py"),
        "COPY requirements.txt: git",
    ),
    ("copies_exist", replaced(".dockerignore", "!src\n", ""), "COPY src: shut out by .dockerignore"),
    ("image_holds_the_repository", replaced(".dockerignore", "!claims.yaml\n", ""), "add a line !claims.yaml"),
    (
        "image_holds_the_repository",
        added(".dockerignore", "!.hadolint"),
        ".hadolint/x: reaches the image, but git does",
    ),
    ("nothing_secret_or_large", replaced(".dockerignore", "\n*\n", "\n"), ".git/config: would reach the image"),
    ("nothing_secret_or_large", replaced(".dockerignore", "**/.env*\n", ""), "src/.env: would reach the image"),
    ("nothing_secret_or_large", written("src/notes.py", f"# hf_{'a' * 34}"), "src/notes.py: looks like a credential"),
    ("nothing_secret_or_large", written("results/big.csv", "0" * 20_000_001), "results/big.csv: 20 MB; at most 20"),
    ("no_token_in_the_image", added("Dockerfile", "ARG HF_TOKEN"), "ARG HF_TOKEN: stays in the image"),
    (
        "no_token_in_the_image",
        added("Dockerfile", "ENV A=b \\\n  AWS_SECRET_ACCESS_KEY=c"),
        "ENV AWS_SECRET_ACCESS_KEY",
    ),
    ("user_is_not_root", added("Dockerfile", "USER root"), "USER root: a uid other than 0"),
    ("user_is_not_root", replaced("Dockerfile", "USER 1000:1000\n", ""), "USER nobody said"),
    ("packages_are_pinned", added("requirements.lock", "numpy>=2"), "'numpy>=2' is not NAME==VERSION"),
    (
        "packages_are_pinned",
        replaced("Dockerfile", "VENV=/opt/", "VENV=/workspace/"),
        "a mounted checkout would hide it",
    ),
    ("packages_are_pinned", replaced("Dockerfile", "make env", "true"), "no RUN makes the environment"),
    (
        "command_ends_with_the_claims",
        replaced("Dockerfile", " && feature-survival verdicts", ""),
        "end with its claims",
    ),
    ("command_ends_with_the_claims", replaced("Dockerfile", "CMD [", "CMD "), "CMD is not a JSON list"),
    ("compose_is_valid", written("compose.yaml", "services: [\n"), "compose.yaml: not YAML"),
    ("compose_is_valid", written("compose.yaml", "volumes: {}\n"), "compose.yaml: no services"),
    ("compose_is_valid", replaced("compose.yaml", "{service: study}", "{service: studio}"), "'studio', which is no"),
    ("compose_is_valid", replaced("compose.yaml", "build: .", "build: src"), "'src' holds no Dockerfile"),
    (
        "compose_is_valid",
        replaced("compose.yaml", "@sha256:4e", "@sha256:4"),
        "store: image 'chrislusf/seaweedfs:4.48@",
    ),
    ("compose_is_valid", replaced("compose.yaml", "- hub:", "- hup:"), "volume 'hup' is neither declared nor a folder"),
    ("compose_is_valid", replaced("compose.yaml", "[HF_TOKEN,", "[HF_TOKEN=hf_x,"), "only names, handed on from the"),
]


@pytest.mark.parametrize(("check", "damage", "fault"), BROKEN, ids=[f"{case[0]}-{case[2][:24]}" for case in BROKEN])
def test_a_broken_copy_is_found_out(check, damage, fault, copy):
    (copy / ".hadolint").mkdir()
    (copy / ".hadolint" / "x").touch()
    damage(copy)
    found = list(getattr(docker_check, check)(copy))
    assert any(fault in line for line in found), found


def test_a_step_of_the_image_that_fails_is_named_and_ends_the_replay(copy, tmp_path_factory):
    replaced("Dockerfile", "make env", "make environment")(copy)
    (found,) = docker_check.replay(copy, tmp_path_factory.mktemp("replay"))
    assert "make environment" in found and "exit code 2" in found


def test_a_step_sees_only_what_was_copied_before_it(copy, tmp_path_factory):
    replaced("Dockerfile", "COPY src ./src\n", "")(copy)
    replaced("Dockerfile", "make env VENV=${VENV}", "make --version && test -d src")(copy)
    (found,) = docker_check.replay(copy, tmp_path_factory.mktemp("replay"))
    assert "test -d src: exit code 1" in found


def entered(folder: Path, *words: str, **options: int) -> subprocess.CompletedProcess[str]:
    """Words run by the image's ENTRYPOINT."""
    entry = json.loads(docker_check.values(TOP, "ENTRYPOINT")[0])
    return subprocess.run([*entry, *words], cwd=folder, capture_output=True, text=True, **options)


def test_the_entrypoint_runs_the_words_it_is_given(tmp_path):
    ended = entered(tmp_path, "sh", "-c", 'echo "$1"; exit 3', "sh", "two words")
    assert (ended.returncode, ended.stdout) == (3, "two words\n")


@pytest.mark.parametrize(("has_data", "ran"), [(False, "data\nrepro\n"), (True, "repro\n")])
def test_dvc_finds_the_corpus_made_in_a_fresh_checkout(tmp_path, monkeypatch, has_data, ran):
    for name in ("feature-survival", "dvc"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/ran\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "data.dvc").touch()
    if has_data:
        (tmp_path / "checkout" / "data").mkdir()
    assert entered(tmp_path / "checkout", "dvc", "repro").returncode == 0
    assert (tmp_path / "ran").read_text() == ran


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_a_checkout_of_another_user_is_one_line_that_says_what_to_add(tmp_path):
    place = Path("/var/empty") if Path("/var/empty").is_dir() else Path("/usr")
    owner = f"{place.stat().st_uid}:{place.stat().st_gid}"
    ended = entered(place, "true", user=65534)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {place} is not writable for uid 65534: docker run --user {owner}\n"
