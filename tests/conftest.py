"""Fixtures of all tests: the packages of this repository by name, golden cases, and one measure of error.

The repository's root stays off `sys.path`: its `nodes` folder would hide ComfyUI's module of that name.
"""

import importlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

# One thread in this process and in those that tests start: threads of a tiny network mostly wait for each other, above
# all where a browser takes the core of one, and the last bits of a convolution on a CPU depend on their number.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it


def register(name: str, folder: Path) -> ModuleType:
    """Make the package or module in `folder` importable as `name`, without its parent on `sys.path`."""
    package = folder / name / "__init__.py"
    path = package if package.exists() else folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


register("wan_model", ROOT)
register("tiny", ROOT)
register("devtools", ROOT)
recipe = register("recipe", GOLDEN)
register("writers", ROOT / "tests")
register("mutations", ROOT / "tests")
register("official", ROOT / "tests")
register("measure", ROOT / "benchmarks")
register("card", ROOT / "benchmarks")
running_server = register("running_server", ROOT / "tests")
namespaces = register("namespaces", ROOT / "tests")
register("shared_run", ROOT / "tests")
table = importlib.import_module("official.table")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option to run the browser tests in the editor's other renderer."""
    parser.addoption("--newer-renderer", action="store_true", help="browser tests: draw nodes as the page's elements")


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests that talk to ComfyUI from outside their fixtures, and print the tables of outcomes."""
    config.pluginmanager.register(running_server)
    config.pluginmanager.register(namespaces)
    config.pluginmanager.register(table)
    config.pluginmanager.register(Failures(config))


class Failures:
    """Says at once what failed: a run that is cut off prints no summary."""

    def __init__(self, config: pytest.Config):
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the last line of a failure."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            terminal.write_line(f"\n{report.nodeid} ({report.when}): {crash.message if crash else report.longrepr}")


class ByFile(LoadScopeScheduling):
    """Deals whole files to the workers, and to one of them all that start servers, which would disturb each other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "servers" if Path(file).parent.name in ("browser", "e2e") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Deal the tests to several workers by file."""
    return ByFile(config, log)


@dataclass(frozen=True)
class Golden:
    """One golden case: the official constructor's arguments, parameter shapes, and the tensors in and out."""

    config: dict
    shapes: dict[str, list[int]]
    seed: int
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def weights(self, seed: int | None = None) -> dict[str, torch.Tensor]:
        """State dict the case was run with, in official names; another `seed` gives other weights of those shapes."""
        return recipe.state_dict(self.shapes, self.seed if seed is None else seed)


@pytest.fixture(scope="session")
def golden():
    """Function from the name of a golden case to its `Golden`."""

    def load(name: str) -> Golden:
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a mapping
        return Golden(
            config=json.loads(metadata.get("config", "{}")),
            shapes=json.loads(metadata.get("shapes", "{}")),
            seed=int(metadata.get("seed", 0)),
            inputs={key[3:]: value for key, value in tensors.items() if key.startswith("in.")},
            outputs={key[4:]: value for key, value in tensors.items() if key.startswith("out.")},
            metadata=metadata,
        )

    return load


@pytest.fixture(scope="session")
def golden_weights(golden):
    """Function from the name of a golden case (and another seed) to the weights of its model, in official names."""
    return lambda name, seed=None: golden(name).weights(seed)


@pytest.fixture(scope="session")
def relative_error():
    """Function (actual, expected) -> |actual - expected| / |expected| in the 2-norm.

    Infinite where a shape differs or a value is not finite, so that no comparison with NaN can pass.
    """

    def measure(actual: torch.Tensor, expected: torch.Tensor) -> float:
        if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
            return float("inf")
        norm = expected.double().norm()
        assert norm > 0, "a comparison with zeros proves nothing"
        return float((actual.double().cpu() - expected.double().cpu()).norm() / norm)

    return measure
