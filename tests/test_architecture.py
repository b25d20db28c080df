"""Reads the folders and dvc.yaml, and holds the design's picture of them: rooms, whose imports go down the list."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import REPOSITORY

# A room imports from those before it only.
ROOMS = (
    "began/base",
    "began/device",
    "began/params.py",
    "began/data",
    "began/gan",
    "began/runs",
    "began/evaluation",
    "began/pretrained",
    "pipeline/console",
    "pipeline/tracking",
    "pipeline/recording",
    "pipeline/report",
    "pipeline",  # the commands
    "pipeline/cli.py",
    "pipeline/__main__.py",
)
SINGLE_USERS = {
    "yaml": "began.params",
    "PIL": "began.data.images",
    "h5py": "began.data.rows",
    "mlflow": "pipeline.tracking",
    "dvc": "pipeline.report.find_runs",
}
STAGES = ("download", "preprocess", "train", "evaluate")
# What is read of params.yaml counts by its values. The rest shapes no image, row, weight or number.
EXEMPT = ("began/params.py", "pipeline/console", "pipeline/tracking", "pipeline/cli.py")


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("began", "pipeline")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}


def room(module: str) -> str:
    """The nearest room around it; none for `began` itself, which imports nothing."""
    path = MODULES[module].relative_to(REPOSITORY)
    return next((str(p) for p in (path, *path.parents) if str(p) in ROOMS), "")


def imports(module: str) -> set[str]:
    """Every module that `module` imports, in functions too; not under `if __name__ == "__main__"` or TYPE_CHECKING."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING"):
            continue
        yield node
        yield from statements(node)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES}


def closure(module: str) -> set[str]:
    """`module` and all of ours that it needs."""
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= ours(name) - found
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    order = [*ROOMS, ""]
    for other in ours(module) - {module, "began"}:
        assert order.index(room(other)) <= order.index(room(module)), f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_no_import_comes_round(module: str) -> None:
    assert not [other for other in ours(module) - {module} if module in closure(other)]


def test_the_picture_names_only_rooms_that_exist() -> None:
    assert [name for name in ROOMS if not (REPOSITORY / name).exists()] == []
    folders = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "began").iterdir() if path.is_dir()}
    assert folders - {"began/__pycache__"} <= set(ROOMS)


@pytest.mark.parametrize("package", SINGLE_USERS)
def test_each_of_these_packages_has_one_module_or_room_that_uses_it(package: str) -> None:
    users = {m for m in MODULES for name in imports(m) if name.split(".")[0] == package}
    assert users and all(f"{user}.".startswith(f"{SINGLE_USERS[package]}.") for user in users)


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] == "began"])
def test_the_library_knows_no_command_line_tracking_or_pipeline(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"typer", "click", "rich", "mlflow", "dvc", "pipeline"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_folder_that_shapes_its_output(stage: str) -> None:
    named = [dep for dep in stages()[stage]["deps"] if dep.startswith(("began/", "pipeline/"))]
    needed = {f"pipeline/{stage}.py", *(room(module) for module in closure(f"pipeline.{stage}"))}
    assert set(named) == needed - {"", "pipeline", *EXEMPT}
    assert len(named) <= 8


def test_stages_are_one_chain_of_four() -> None:
    assert tuple(stages()) == STAGES
    for earlier, later in itertools.pairwise(STAGES):
        assert set(stages()[earlier]["outs"]) & set(stages()[later]["deps"]), f"{later} uses nothing of {earlier}"


def stages() -> dict[str, dict[str, list[str]]]:
    loaded: dict[str, dict[str, list[str]]] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    return loaded
