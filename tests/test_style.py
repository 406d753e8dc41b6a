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
OPTIONAL_IMPORTS = {"triton_kernels.py": {"triton"}}  # of a module that is only imported where these are there


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", "comfy-test lint --strict ."], ids=lambda command: command
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
