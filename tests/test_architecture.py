"""The walls of the house: who may import whom, what a component may hold, what stays out of where."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LAYERS = ("contrique", "components", "pipelines")
# A package of `contrique` imports only those above its own line; modules at the root of it are the first line.
ORDER = (
    (
        *("", "arrays", "config", "errors", "images", "completeness", "tiff", "metrics", "metadata"),
        *("pages", "artifacts", "files", "interrupts", "integrity", "walk", "s3", "text", "telemetry"),
    ),
    ("distortions", "tracking"),
    ("data",),
    ("sources", "encoder"),
    ("regressor", "pretraining"),
    ("evaluation", "scoring"),
    ("serving", "benchmark", "registry"),
    ("monitoring", "rating", "reports"),
    ("api",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MAX_LINES = 450
ONLY_IMPORTERS = {
    "dvc": {"contrique/sources/dvc_remote.py"},
    "great_expectations": {"contrique/data/validation.py", "contrique/data/validation_page.py"},
    "mlflow": {"contrique/tracking/", "contrique/registry/", "contrique/serving/mlflow_model.py"},
    "boto3": {"contrique/s3.py"},
    "botocore": {"contrique/s3.py"},
    "kubernetes": {"contrique/pretraining/launch.py"},
    "fastapi": {"contrique/serving/", "contrique/rating/server.py"},
    "uvicorn": {"contrique/serving/"},
}
# Past participles that named things once, and say nothing of what the thing is.
PARTICIPLES = {
    *("told", "heard", "made", "given", "found", "said", "seen", "kept", "chosen", "shown", "taken", "joined", "known"),
    *("was", "were", "wanted", "drawn", "sent", "got", "held"),
}
# Modules through which files, networks, clocks or other processes are reached.
IO = {"datetime", "glob", "pathlib", "requests", "shutil", "socket", "subprocess", "tempfile", "time", "urllib"}


def sources(*layers: str) -> list[Path]:
    return [path for layer in layers for path in sorted((ROOT / layer).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Full names of every module imported anywhere in a file; of `from a import b`, both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def list_names(path: Path) -> Iterator[tuple[str, int]]:
    """Every name that a file binds, and where: variables, attributes, arguments, functions, classes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


@pytest.mark.parametrize("layer", [*LAYERS, "benchmarks", "tests"])
def test_no_name_is_a_participle(layer):
    names = [(name, f"{name_of(path)}:{line}") for path in sources(layer) for name, line in list_names(path)]
    assert len(names) > 50
    assert not [f"{place}: {name}" for name, place in names if name.strip("_").lower() in PARTICIPLES]


@pytest.mark.parametrize("path", sources("contrique"), ids=name_of)
def test_contrique_knows_no_orchestrator(path):
    assert not roots(path) & {"kfp", "components", "pipelines"}


@pytest.mark.parametrize("path", sources("components"), ids=name_of)
def test_components_know_only_contrique(path):
    assert "pipelines" not in roots(path)
    others = {name for name in imports(path) if name.startswith("components.")} - {"components.component"}
    assert not others, "a component imports another"


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_each_platform_library_has_one_importer(package):
    importers = {name_of(path) for path in sources(*LAYERS) if package in roots(path)}
    assert importers, "or this test would pass on a renamed module"
    strays = {name for name in importers if not name.startswith(tuple(ONLY_IMPORTERS[package]))}
    assert not strays


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def graph() -> dict[str, set[str]]:
    """Module of `contrique` -> those that it imports, at its top, inside a function or for types alone."""
    modules = {module_of(path): path for path in sources("contrique")}
    edges = {}
    for module, path in modules.items():
        names = {name for name in imports(path) if name in modules}
        # of `from a import b`, a is imported for its own sake only if b is no module
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        parents = {str(node.module) for node in froms} - {
            str(node.module) for node in froms for alias in node.names if f"{node.module}.{alias.name}" not in modules
        }
        plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        edges[module] = (names - (parents - plain)) - {module}
    return edges


def package_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def test_packages_import_only_those_to_their_left():
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if module != "contrique"  # the front door, which imports the others but telemetry when it is asked
        if package_of(module) != package_of(other) and RANK[package_of(other)] >= max(1, RANK[package_of(module)])
    ]
    assert not wrong


def test_no_module_is_in_a_circle():
    remaining = graph()
    while free := {module for module, others in remaining.items() if not others & remaining.keys()}:
        remaining = {module: others for module, others in remaining.items() if module not in free}
    assert not remaining, "these import each other, directly or not"


@pytest.mark.parametrize("path", [p for p in sources("contrique") if p.parent.name != "distortions"], ids=name_of)
def test_no_module_is_too_long(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "contrique/evaluation/gate.py",
        ROOT / "contrique/pretraining/loss.py",
        *sources("contrique/distortions"),
    ],
    ids=name_of,
)
def test_pure_modules_do_no_io(path):
    assert not roots(path) & IO
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not {node.func.id for node in nodes if _is_plain_call(node)} & {"open", "print", "input"}
    of_os = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os"}
    assert of_os <= {"cpu_count", "sched_getaffinity"}, "of os, only what counts cores"
    assert "os" not in {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("path", [p for p in sources("components") if p.name != "__init__.py"], ids=name_of)
def test_a_component_is_thin(path):
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [path.stem]
    (function,) = functions
    assert ast.get_docstring(function)
    assert len(function.body) - 1 <= 5, "the body may hold five statements after its docstring"
    nested = [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While | ast.If | ast.Try)]
    assert not nested, "control flow belongs into contrique"


# contrique/encoder/weights.py reads the header of a safetensors file, which is no artifact's metadata.
@pytest.mark.parametrize(
    "path", [path for path in sources(*LAYERS) if name_of(path) != "contrique/encoder/weights.py"], ids=name_of
)
def test_nothing_is_read_from_an_artifacts_metadata(path):
    """On a cluster they come back changed: they are written, and that is all."""
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "metadata" and not is_library(node):
            parent = parents[node]
            is_update = isinstance(parent, ast.Attribute) and parent.attr == "update"
            is_store = isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store)
            assert is_update or is_store, f"line {node.lineno}"


def is_library(node: ast.Attribute) -> bool:
    """Whether it is the library of that name, or a file's header, and no artifact's."""
    return isinstance(node.value, ast.Name) and node.value.id in ("importlib", "metadata", "file")


def test_pipelines_compute_nothing():
    for path in sources("pipelines"):
        assert not roots(path) & {"numpy", "pandas", "torch", "sklearn", "scipy"}, name_of(path)


def test_mlflow_is_the_installed_package():
    """A package in the folder mlflow/ would shadow it."""
    import mlflow

    assert not list((ROOT / "mlflow").rglob("__init__.py"))
    assert mlflow.__version__ == _pins()["mlflow"]


_PIN = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?P<marker>; sys_platform == \"linux\")?"
    r"(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)  # (?P<users>[a-z ]+)"
)


def _lock() -> list[re.Match[str]]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [re.fullmatch(_PIN, line) or pytest.fail(line) for line in lines if not line.startswith("#")]


def _pins() -> dict[str, str]:
    return {pin["name"]: pin["version"] for pin in _lock()}


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_agrees_with_the_project():
    project, pins = _project(), _pins()
    wishes = map(Requirement, [*project["dependencies"], *chain(*project["optional-dependencies"].values())])
    for wish in wishes:
        assert pins[canonicalize_name(wish.name)] in wish.specifier, wish


def test_exact_versions_stand_in_the_lock_alone():
    project = _project()
    wishes = map(Requirement, [*project["dependencies"], *chain(*project["optional-dependencies"].values())])
    operators = {each.operator for wish in wishes for each in wish.specifier}
    assert operators == {">="}, "an upper bound only where a break is known"
    assert project["requires-python"] == ">=3.11"


def test_the_lock_says_who_needs_what():
    """Of these lines the images are made, and what `make wheel-check` installs."""
    project = _project()
    users = {pin["name"]: set(pin["users"].split()) for pin in _lock()}
    for name, wishes in {"base": project["dependencies"], **project["optional-dependencies"]}.items():
        for wish in wishes:
            assert users[canonicalize_name(Requirement(wish).name)] & {name, "base"}, (name, wish)
    assert all("server" in users[name] for name in ("mlflow", "boto3", "psycopg2-binary", "flask", "sqlalchemy"))
    assert not any("base" in users[name] for name in ("mlflow", "kfp", "dvc", "boto3", "fastapi", "pytest"))


def test_a_lock_serves_several_platforms():
    counts = {pin["name"]: pin["hashes"].count("--hash") for pin in _lock()}
    assert counts["numpy"] >= 3, "Linux on both processors, and macOS"
    assert counts["torch"] >= 3


def test_the_lock_is_what_is_installed():
    """As `make lock` writes it; what else is in the environment is nobody's business."""
    from importlib.metadata import version

    pins = _pins()
    assert {name: version(name) for name in ("torch", "numpy", "kfp", "mlflow", "pyarrow")} == {
        name: pins[name] for name in ("torch", "numpy", "kfp", "mlflow", "pyarrow")
    }


@pytest.mark.parametrize("module", ["contrique.cli.main", "pipelines.__main__"])
def test_help_imports_nothing_heavy(module):
    """So that `--help` answers at once."""
    code = (
        f"import sys\nsys.argv = ['program', '--help']\nfrom {module} import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'kfp', 'mlflow', 'great_expectations', 'dvc', 'sklearn', 'pandas', 'scipy', 'matplotlib'}\n"
        "heavy |= {'fastapi', 'uvicorn', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "usage" in process.stdout
