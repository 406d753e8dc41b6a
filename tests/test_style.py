"""The style checks, and the rule that an import runs only downwards: nodes -> host -> wan_model."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
OUTSIDE = {"host": {"nodes"}, "wan_model": {"nodes", "host"}}  # rooms that a room must not know
MODEL_IMPORTS = {"torch", "einops", "safetensors"}  # besides the standard library
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
}
PROBES = {"getattr", "hasattr", "dir", "vars", "signature", "fields", "find_spec", "import_module"}
OPTIONAL_IMPORTS = {"triton_kernels.py": {"triton"}}  # of a module that is only imported where these are there


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "mypy", "comfy-test lint --strict ."],
    ids=lambda command: command,
)
def test_a_checker_is_content(command):
    name, *arguments = command.split()
    program = shutil.which(name, path=SCRIPTS)
    assert program, f"{name} is not installed beside {sys.executable}: run `python3 dev.py test`"
    result = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in `path`, also of those inside functions; a level above 0 is relative."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
    return found


@pytest.mark.parametrize("room", sorted(OUTSIDE))
def test_imports_run_downwards(room):
    for path in (ROOT / room).rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts)
        upward = [name for level, name in imports(path) if level >= depth and name.split(".")[0] in OUTSIDE[room]]
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def probes(path: Path) -> list[str]:
    """Return the expressions in `path` that ask a module of the host, or something imported from one, what it has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [
        (alias.asname or alias.name.split(".")[0], module or alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
        for alias in node.names
        for module in [getattr(node, "module", None)]
    ]
    of_host = {name for name, module in imported if module.split(".")[0] in HOST_MODULES}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    asked = [call for call in calls if ast.unparse(call.func).split(".")[-1] in PROBES]
    found = [call for call in asked if of_host & {n.id for n in ast.walk(call.args[0]) if isinstance(n, ast.Name)}]
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type]
    found += [handler.type for handler in handlers if "ImportError" in ast.unparse(handler.type)]
    return [ast.unparse(node) for node in found]


def test_only_compat_probes_the_host():
    compat = ROOT / "host" / "compat.py"
    assert len(probes(compat)) >= 10  # the rule sees what it forbids
    for path in (*(ROOT / "host").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")):
        assert path == compat or not probes(path), f"{path.relative_to(ROOT)} probes the host: {probes(path)}"


def test_wan_model_imports_torch_and_no_host():
    allowed = MODEL_IMPORTS | sys.stdlib_module_names
    for path in (ROOT / "wan_model").rglob("*.py"):
        known = allowed | OPTIONAL_IMPORTS.get(path.name, set())
        foreign = {name for level, name in imports(path) if level == 0 and name.split(".")[0] not in known}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_wan_model_imports_with_no_comfyui_on_the_path():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "wan_model").rglob("*.py")
    ]
    code = f"import sys, {', '.join(modules)}; assert 'comfy' not in sys.modules and 'folder_paths' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_setup_needs_only_the_standard_library():
    before = {"browser", "environment", "host", "server"}  # what dev.py imports before anything is installed
    for path in [ROOT / "dev.py", *(ROOT / "devtools" / f"{name}.py" for name in before)]:
        known = sys.stdlib_module_names | {"devtools"}
        assert {name.split(".")[0] for level, name in imports(path) if level == 0} <= known, path
        assert {name for level, name in imports(path) if level == 1} <= before, path
