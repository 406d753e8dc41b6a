"""Model files by the names that the editor shows, resolved inside the host's own folders."""

from pathlib import Path

import folder_paths

from ..wan_model.weights.files import PART

EXTENSIONS = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".gguf")
GGUF_FOLDER = "wan_gguf_{}"  # the host lists no .gguf files: a second entry for the same folders


def offer(models: Path) -> None:
    """Add the folders in `models`, which is laid out as the host's models folder, to those that loaders list."""
    for folder in sorted(models.glob("*")):  # empty if somebody has deleted them
        if folder.is_dir():
            folder_paths.add_model_folder_path(folder.name, str(folder))


def names(folder: str) -> list[str]:
    """Return the file names of the host's model folder `folder` as its loaders list them, and GGUF files.

    A model split into several files is listed once, by its first file.
    """
    return [name for name in _listed(folder) if name.lower().endswith(EXTENSIONS) and _is_first(name)]


def path(folder: str, name: str) -> str:
    """Return the full path of `name`, a file in the host's model folder `folder`.

    Raise ValueError for a name that is not in the list, so that no path outside the host's folders is ever opened, and
    for a link whose file is gone.
    """
    if name not in _listed(folder):
        raise ValueError(
            f"'{name}' is not in the models/{folder} folder: put the file there and press R in the editor, or choose "
            "another one."
        )
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        raise ValueError(
            f"'{name}' in the models/{folder} folder is a link to a file that is not there: connect the drive that it "
            "is on, or choose another one."
        )
    return found


def name(folder: str, path: str) -> str:
    """Return the name of the file `path` in the host's model folder `folder`; raise ValueError if it is in none."""
    for base in folder_paths.get_folder_paths(folder):
        if Path(path).is_relative_to(base):
            return str(Path(path).relative_to(base))
    raise ValueError(f"{path} is in no models/{folder} folder of ComfyUI: put the file there.")


def _listed(folder: str) -> list[str]:
    gguf = GGUF_FOLDER.format(folder)
    folder_paths.folder_names_and_paths.setdefault(gguf, (folder_paths.folder_names_and_paths[folder][0], {".gguf"}))
    return [*folder_paths.get_filename_list(folder), *folder_paths.get_filename_list(gguf)]


def _is_first(name: str) -> bool:
    part = PART.search(name)
    return part is None or int(part["number"]) <= 1
