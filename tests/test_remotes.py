"""Every remote of REPRODUCE.md for real, on loopback: push, pull in a fresh clone, nothing runs; and ones that refuse.

The pipeline is ours, cut after `cache`: outputs that are pushed, one that is not, and data/ that nothing holds.
"""

import asyncio
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import asyncssh
import boto3
import pytest
from conftest import TINY_STUDY, TOP, contents
from moto.server import ThreadedMotoServer
from ruamel.yaml import YAML

from feature_survival.artifacts import Cell
from feature_survival.config import load
from feature_survival.stages import cache, prune

PROGRAMS = Path(sys.executable).parent
FILE = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")  # an object that is no list of others
STAGES = ("base", "prune", "cache")
PUSHED = ("artifacts/tiny/base", "artifacts/training")
QUIET = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
    "DVC_NO_ANALYTICS": "1",
    "TQDM_DISABLE": "1",
    "no_proxy": "127.0.0.1",
    "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "reader",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    home = {"HOME": str(folder.parent)}  # the machine's own credentials and keys stay out
    return subprocess.run(
        words,
        cwd=folder,
        env={**inherited, **QUIET, **home, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def done(folder: Path, *words: str, **environment: str) -> str:
    ended = run(folder, *words, **environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def remote(folder: Path, url: str, **options: str) -> None:
    """Make `url` the checkout's own default remote: in .dvc/config.local, which git does not track."""
    done(folder, "dvc", "remote", "add", "--local", "--force", "--default", "mine", url)
    for option, value in options.items():
        done(folder, "dvc", "remote", "modify", "--local", "mine", option, value)


@pytest.fixture(scope="session")
def origin(tmp_path_factory, write_params, _trained) -> Path:
    """A repository whose three stages were done, and whose outputs are pushed to the bundled remote, store/."""
    folder = tmp_path_factory.mktemp("remotes") / "origin"
    _trained(folder, write_params)
    params = load(write_params(folder, {**TINY_STUDY, "study.conditions": ["dense"], "report.conditions": ["dense"]}))
    prune.run(params, folder, "tiny")
    cache.run(params, Cell(folder, "tiny", "dense"))
    pipeline = YAML(typ="safe").load(TOP / "dvc.yaml")
    YAML().dump({"stages": {name: pipeline["stages"][name] for name in STAGES}}, folder / "dvc.yaml")
    shutil.copytree(TOP / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in (".dvcignore", ".gitignore", "data.dvc", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(TOP / name, folder / name)
    done(folder, "git", "init", "--quiet")
    done(folder, "dvc", "commit", "--force")
    assert "Running stage" not in done(folder, "dvc", "repro")
    done(folder, "dvc", "push")
    done(folder, "git", "add", "--all")
    done(folder, "git", "-c", "user.name=reader", "-c", "user.email=", "commit", "--quiet", "--message", "a release")
    return folder


@pytest.fixture
def clone(origin, tmp_path) -> Path:
    """A fresh clone."""
    done(tmp_path, "git", "clone", "--quiet", str(origin), "clone")
    return tmp_path / "clone"


class Remote(NamedTuple):
    """Where a remote is, its settings, and what its user has in the environment."""

    url: str
    options: dict[str, str]
    environment: dict[str, str]


class Static(SimpleHTTPRequestHandler):
    """A folder served as any web server would; after `patience` files of outputs it answers 503."""

    patience = 1000
    served: list[str]

    def do_GET(self) -> None:
        if FILE.search(self.path):
            if len(self.served) >= self.patience:
                return self.send_error(503)
            self.served.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Forbidden(Static):
    """Refuses everybody."""

    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET


def listening(handler: type[Static], folder: Path, **settings: object) -> Iterator[tuple[str, type[Static]]]:
    """A web server on a free port of loopback, and the handler that counts what it served."""
    kind = type("Handler", (handler,), {"served": [], **settings})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()


@pytest.fixture(scope="session")
def web(origin) -> Iterator[Remote]:
    """store/ behind a static web server."""
    for url, _ in listening(Static, origin / "store"):
        yield Remote(url, {}, {})


@pytest.fixture(scope="session")
def s3() -> Iterator[Remote]:
    """An S3-compatible server with one empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    names = {key.lower(): value for key, value in CREDENTIALS.items() if key != "AWS_DEFAULT_REGION"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name=CREDENTIALS["AWS_DEFAULT_REGION"], **names)
    client.create_bucket(Bucket="feature-survival")
    yield Remote("s3://feature-survival/study", {"endpointurl": endpoint}, CREDENTIALS)
    server.stop()


@pytest.fixture(scope="session")
def ssh(tmp_path_factory) -> Iterator[Remote]:
    """An SFTP server with an empty folder, which one key opens."""
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "root").mkdir()
    key, loop = asyncssh.generate_private_key("ssh-ed25519"), asyncio.new_event_loop()
    key.write_private_key(folder / "key")
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
            sftp_factory=functools.partial(asyncssh.SFTPServer, chroot=str(folder / "root")),
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(timeout=10)
    url = f"ssh://reader@127.0.0.1:{server.get_port()}/study"
    yield Remote(url, {"keyfile": str(folder / "key"), "timeout": "10"}, {})
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)


def pushed(folder: Path) -> dict[str, bytes]:
    """The outputs that DVC pushes, as they lie in a checkout."""
    found = {f"{place}/{name}": data for place in PUSHED for name, data in contents(folder / place).items()}
    assert found
    return found


@pytest.mark.parametrize("kind", ["bundled", "web", "s3", "ssh"])
def test_what_was_pushed_is_pulled_into_a_fresh_clone_and_nothing_runs(kind, origin, clone, request):
    environment: dict[str, str] = {}
    if kind != "bundled":
        there: Remote = request.getfixturevalue(kind)
        environment = there.environment
        shutil.rmtree(clone / "store")
        remote(clone, there.url, **there.options)
        if kind != "web":  # a static web server takes nothing; the others are filled from where everything is
            remote(origin, there.url, **there.options)
            assert "files pushed" in done(origin, "dvc", "push", **environment)
    done(clone, "dvc", "pull", **environment)
    assert pushed(clone) == pushed(origin)
    ran = done(clone, "dvc", "repro", "--allow-missing", **environment)
    assert "Running stage" not in ran and "up to date" in ran
    # What is missing, and no more than that, is what no remote holds: the corpus, masks and activations.
    status = json.loads(done(clone, "dvc", "status", "--json"))
    changes = [change for entries in status.values() for entry in entries for change in entry.values()]
    assert {state for change in changes for state in change.values()} == {"deleted"}
    missing = {path for change in changes for path in change if not path.startswith("data")}
    assert missing == {"artifacts/tiny/prune", "artifacts/tiny/prune/dense", "artifacts/tiny/dense/cache"}


def settle(folder: Path, there: Remote) -> None:
    """What `remote` does, by the file it writes: quicker."""
    lines = ["[core]", "remote = mine", "['remote \"mine\"']", f"url = {there.url}"]
    lines += [f"{option} = {value}" for option, value in there.options.items()]
    (folder / ".dvc" / "config.local").write_text("\n".join(lines) + "\n")


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def down(_: pytest.FixtureRequest) -> Remote:
    return Remote(f"http://127.0.0.1:{unused_port()}", {}, {})


def refused(_: pytest.FixtureRequest) -> Remote:
    return Remote(f"ssh://reader@127.0.0.1:{unused_port()}/study", {}, {})


def forbidden(request: pytest.FixtureRequest) -> Remote:
    return Remote(request.getfixturevalue("forbidding"), {}, {})


def elsewhere(request: pytest.FixtureRequest) -> Remote:
    web: Remote = request.getfixturevalue("web")
    return Remote(f"{web.url}/no/such/folder", {}, {})


def no_bucket(request: pytest.FixtureRequest) -> Remote:
    return request.getfixturevalue("s3")._replace(url="s3://another-bucket")


def no_credentials(request: pytest.FixtureRequest) -> Remote:
    return request.getfixturevalue("s3")._replace(environment={})


def other_key(request: pytest.FixtureRequest) -> Remote:
    there: Remote = request.getfixturevalue("ssh")
    key = request.getfixturevalue("tmp_path") / "other_key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    return there._replace(options={**there.options, "keyfile": str(key)})


@pytest.fixture
def forbidding(tmp_path) -> Iterator[str]:
    for url, _ in listening(Forbidden, tmp_path):
        yield url


REFUSALS = {
    down: "Cannot connect to host 127.0.0.1",
    forbidden: "403",
    elsewhere: "404",
    no_bucket: "The specified bucket does not exist",
    no_credentials: "Unable to locate credentials",
    refused: "Connect call failed",
    other_key: "Permission denied",
}


@pytest.mark.parametrize("refusing", REFUSALS, ids=lambda case: case.__name__)
def test_a_remote_that_refuses_is_one_line_and_pulls_once_it_is_repaired(refusing, origin, clone, request):
    there: Remote = refusing(request)
    bundled = clone / "store"
    bundled.rename(clone.parent / "store")
    before = workspace(clone)
    settle(clone, there)
    ended = run(clone, "feature-survival", "pull", **there.environment)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "remote 'mine'" in ended.stderr and REFUSALS[refusing] in ended.stderr
    assert workspace(clone) == before
    settle(clone, Remote(str(clone.parent / "store"), {}, {}))
    done(clone, "dvc", "pull")
    assert pushed(clone) == pushed(origin)


def workspace(folder: Path) -> dict[str, bytes]:
    """A checkout's files; git's and DVC's own left out."""
    return {name: data for name, data in contents(folder).items() if not name.startswith((".git/", ".dvc/"))}


def test_a_pull_broken_off_goes_on_where_it_stopped(origin, clone):
    before = workspace(clone)
    for url, handler in listening(Static, origin / "store", patience=5):
        settle(clone, Remote(url, {}, {}))
        ended = run(clone, "feature-survival", "pull")
        assert ended.returncode == 2 and "pull again" in ended.stderr.splitlines()[-1]
        assert workspace(clone) == before
        kept = {f"/{name}" for name in contents(clone / ".dvc" / "cache")}
        assert kept
        handler.patience = 1000
        handler.served.clear()
        done(clone, "feature-survival", "pull")
        assert pushed(clone) == pushed(origin)
        assert kept.isdisjoint(handler.served)


def test_a_remote_nobody_configured_is_named(clone):
    ended = run(clone, "feature-survival", "pull", "--remote", "elsewhere")
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and "elsewhere" in ended.stderr
