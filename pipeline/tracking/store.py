"""Where MLflow's store is, how its address is written, and what state it is in. Knows MLflow's words, not MLflow."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from began.base.addresses import shown_url, without_secrets
from pipeline.console.workspace import main_root

EXPERIMENT = "began"
ARTIFACTS = "mlartifacts"
MOST_CHARACTERS = 300  # of words that are not ours
_SQLITE = re.compile(r"sqlite(?:\+pysqlite)?:///([^?]*)(.*)", re.DOTALL)


class DeletedError(ValueError):
    """What is needed was deleted in MLflow's pages, where it waits to be restored; one line with the command."""

    def __init__(self, kind: str, name: str) -> None:
        """kind: run or experiment. name: its id."""
        option = "--run-id" if kind == "run" else "--experiment-id"
        way = _command(f"{kind}s restore {option} {name}")
        super().__init__(f"the {kind} {name} was deleted in MLflow; {way} brings it back")


def store_uri() -> str:
    """The address that MLflow is given: MLFLOW_TRACKING_URI, or else that of the SQLite store `mlflow.db`.

    Relative paths start at the main repository. It may hold a password: `shown_store` is for people.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if match := _sqlite(uri):
        return sqlite_uri(main_root() / unquote(match[1])) + match[2]
    return uri if ":" in uri or is_server(uri) else str(main_root() / uri)


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite file, with what has a meaning in addresses quoted.

    Of `sqlite:///` MLflow takes the rest for a path as it is and makes its folder; with the driver named it does not.
    """
    quoted = re.sub(r"[%?#]", lambda found: f"%{ord(found[0]):02X}", str(path))
    return f"{'sqlite' if quoted == str(path) else 'sqlite+pysqlite'}:///{quoted}"


def database() -> Path | None:
    """The file of an SQLite store; None for any other."""
    match = _sqlite(store_uri())
    return Path(unquote(match[1])) if match else None


def is_server(uri: str) -> bool:
    """Whether the store is a server's, which has its own pages and decides where artifacts go."""
    return uri.startswith(("http://", "https://", "databricks"))


def shown_store() -> str:
    """The store's address for people to read."""
    return shown_url(store_uri())


def artifacts_folder() -> Path:
    """Where the artifacts of a store that is no server's go: in the main repository, or beside its database elsewhere.

    Never inside a temporary copy, which DVC deletes.
    """
    path = database()
    return (main_root() if path is None or _is_here(path) else path.parent) / ARTIFACTS


def bring_artifacts_home() -> None:
    """Makes the store of a repository that was moved or copied name the artifacts that came along, not the older ones.

    MLflow keeps absolute addresses, of the experiment and of each run. Only those that this program gave are changed,
    and only in a database inside the main repository: another one may be shared. sqlite3.Error when it cannot be.
    """
    path = database()
    if path is None or not path.is_file() or not _is_here(path):
        return
    here = artifacts_folder().as_uri()
    with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        found = connection.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)
        ).fetchone()
        if found is None:
            return
        experiment, there = found
        if there == here or not _was_a_checkout(there or ""):
            return
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (here, len(there) + 1, experiment, len(there) + 1, f"{there}/"),
        )
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, experiment))


def _was_a_checkout(location: str) -> bool:
    """Whether artifacts at this address are, or before a move were, beside a checkout's other files."""
    if not re.fullmatch(rf"file:///.*/{ARTIFACTS}", location):
        return False
    folder = Path(unquote(location.removeprefix("file://"))).parent
    return not folder.exists() or (folder / ".dvc").exists()


def explain(error: Exception) -> str:
    """What is wrong with the store, and the command that mends it, in one line; else the error's own words."""
    words = " ".join(str(error).split())
    if isinstance(error, DeletedError):
        return words
    if found := re.search(r"\(found version (?!None)(\w+), but expected \w+\)|revision identified by '(\w+)'", words):
        return _explain_schema(found[1] or found[2])
    if found := re.search(r"[Tt]he (run|experiment) (\S+) must be in the 'active' state", words):
        return str(DeletedError(found[1], found[2]))
    if "migrate-filestore" in words:
        uri = store_uri()
        return _explain_folder(Path(unquote(uri.removeprefix("file://")) if uri.startswith("file:") else uri))
    path = database() if re.search("readonly database|unable to open database file", words) else None
    if found := re.search(r"\[Errno (?:1|13|30)\] [^']*'([^']+)'", words):  # EPERM, EACCES, EROFS
        path = Path(found[1])
    if path is not None:
        return _explain_access(path)
    words = without_secrets(words, [os.environ.get("MLFLOW_TRACKING_URI", "")])
    return words[:MOST_CHARACTERS] or type(error).__name__


@contextmanager
def explained() -> Iterator[None]:
    """Within, whatever a store or a server throws becomes a ValueError that names the store."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{shown_store()}: MLflow's store cannot be read: {explain(error)}") from None


def _command(words: str) -> str:
    """The shell command `mlflow WORDS` on this store. A password stays in the environment, where it is already."""
    path = database()
    return f"`mlflow {words}`" if path is None else f"`MLFLOW_TRACKING_URI={shlex.quote(store_uri())} mlflow {words}`"


def _explain_schema(found: str) -> str:
    mlflow = find_spec("mlflow")
    assert mlflow is not None and mlflow.submodule_search_locations
    known = Path(mlflow.submodule_search_locations[0], "store", "db_migrations", "versions")
    if not any(known.glob(f"{found}_*.py")):
        return (
            f"the store was made by a newer MLflow (schema {found} is not known here); `pip install --upgrade mlflow` "
            "makes it readable, or name another store in MLFLOW_TRACKING_URI"
        )
    address = '"$MLFLOW_TRACKING_URI"' if database() is None else shlex.quote(store_uri())
    return (
        f"the store was made by an older MLflow (schema {found}); make a copy of it, "
        f"then `mlflow db upgrade {address}` makes it readable"
    )


def _explain_folder(folder: Path) -> str:
    """A folder was MLflow's store in its early versions."""
    target = main_root() / "mlflow.db"
    if target.exists():  # the command replaces it
        target = target.with_name(f"{folder.name}.db")
    new = f"MLFLOW_TRACKING_URI={shlex.quote(f'sqlite:///{target.name}')}"
    if not folder.is_dir():
        return f"MLflow no longer takes a folder as its store; name a file: {new}"
    move = f"mlflow migrate-filestore --source {shlex.quote(str(folder))} --target {shlex.quote(f'sqlite:///{target}')}"
    return f"MLflow no longer takes a folder as its store; `{move}` copies its runs to a file; then set {new}"


def _explain_access(path: Path) -> str:
    """path: could not be opened or written."""
    if path.is_dir() and path == database():
        return f"{path}: is a folder, expected an SQLite file"
    files = [path, artifacts_folder(), *filter(None, [database()])]
    places = dict.fromkeys([*files, *(file.parent for file in files)])  # SQLite needs the folder too, for its journal
    lacking = [str(place) for place in places if os.access(place, os.F_OK) and not os.access(place, os.R_OK | os.W_OK)]
    lacking = lacking or [str(path)]
    return (
        f"{', '.join(lacking)}: cannot be written; `chmod u+rwX {' '.join(map(shlex.quote, lacking))}` mends it where "
        "it is yours, or name another store in MLFLOW_TRACKING_URI"
    )


def _sqlite(uri: str) -> re.Match[str] | None:
    """Path, as it stands in the address, and query; None of an address that SQLite itself reads (uri=true)."""
    match = _SQLITE.fullmatch(uri)
    return None if match is None or "uri=true" in match[2] else match


def _is_here(path: Path) -> bool:
    return path.resolve().is_relative_to(main_root())
