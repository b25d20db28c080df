"""Reads the imports and dvc.yaml and holds design's picture of them."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from began.resume import CODE

REPOSITORY = Path(__file__).resolve().parent.parent

# Each module may import from the lines above its own only.
LAYERS = [
    "began began.addresses began.cuda_graph began.divergence began.files began.isolated began.parallel "
    "began.progress began.seeds began.pretrained pipeline",
    "began.networks began.equilibrium began.hdf5 began.images began.params began.archives began.card began.devices",
    "began.batches began.checkpoint began.features began.resume began.sources",
    "began.training began.sampling began.metrics began.neighbours began.attributes began.feature_cache",
    "began.embedding began.distance began.inception",
    "pipeline.environment pipeline.progress pipeline.run_state pipeline.signals pipeline.workspace",
    "pipeline.plots pipeline.recording pipeline.store",
    "pipeline.page",
    "pipeline.tracking pipeline.report pipeline.measurements",
    "pipeline.pictures pipeline.runs",
    "pipeline.comparison",
    "pipeline.download pipeline.preprocess pipeline.train pipeline.evaluate "
    "pipeline.sample pipeline.export pipeline.log pipeline.clean pipeline.compare pipeline.ui",
    "pipeline.cli",
]
SINGLE_USERS = {
    "yaml": "began.params",
    "PIL": "began.images",
    "h5py": "began.hdf5",
    "mlflow": "pipeline.tracking",
    "dvc": "pipeline.runs",
}
STAGES = ("download", "preprocess", "train", "evaluate")

# Editing these changes no image, row, weight or number: no stage need run again for them.
EXEMPT = {
    "began",
    "began.progress",
    "pipeline",
    "pipeline.environment",
    "pipeline.progress",
    "pipeline.signals",
    "pipeline.workspace",
    "pipeline.store",
    "pipeline.tracking",
    "pipeline.page",
    "pipeline.report",
    "pipeline.cli",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("began", "pipeline")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}


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


def layer(module: str) -> int:
    """Index into LAYERS; the modules of began.sources stand beside their package."""
    name = "began.sources" if module.startswith("began.sources.") else module
    return next((i for i, names in enumerate(LAYERS) if name in names.split()), -1)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert layer(module) >= 0, f"{module} stands in no layer of the picture"
    for other in ours(module) - {module}:
        if module.startswith("began.sources") and other.startswith("began.sources"):
            continue
        assert layer(other) < layer(module), f"{module} imports {other}"


def test_the_picture_names_only_modules_that_exist() -> None:
    assert {name for names in LAYERS for name in names.split()} <= MODULES.keys()


@pytest.mark.parametrize("package", SINGLE_USERS)
def test_each_of_these_packages_has_one_user(package: str) -> None:
    users = {m for m in MODULES for name in imports(m) if name.split(".")[0] == package}
    assert users == {SINGLE_USERS[package]}


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] == "began"])
def test_the_library_knows_no_command_line_tracking_or_pipeline(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"typer", "click", "rich", "mlflow", "dvc", "pipeline"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_module_that_shapes_its_output(stage: str) -> None:
    named = [REPOSITORY / dep for dep in stages()[stage]["deps"] if dep.startswith(("began/", "pipeline/"))]
    files = {file for path in named for file in (path.rglob("*.py") if path.is_dir() else [path])}
    assert files == {MODULES[module] for module in closure(f"pipeline.{stage}") - EXEMPT}


def test_the_signature_of_a_run_covers_every_module_that_shapes_it() -> None:
    assert set(CODE) == closure("pipeline.train") - EXEMPT


def test_stages_are_one_chain_of_four() -> None:
    assert tuple(stages()) == STAGES
    for earlier, later in itertools.pairwise(STAGES):
        assert set(stages()[earlier]["outs"]) & set(stages()[later]["deps"]), f"{later} uses nothing of {earlier}"


def stages() -> dict[str, dict[str, list[str]]]:
    loaded: dict[str, dict[str, list[str]]] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    return loaded
