"""Model files by the names that the editor shows, resolved inside the host's own folders."""

import folder_paths

EXTENSIONS = (".safetensors", ".sft", ".pth", ".pt", ".bin")


def names(folder: str) -> list[str]:
    """File names of the host's model folder `folder`, as its loaders list them."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(EXTENSIONS)]


def path(folder: str, name: str) -> str:
    """The full path of `name`, one of `names(folder)`.

    Raises ValueError for a name that is not in the list, so that no path outside the host's folders is ever opened.
    """
    if name not in folder_paths.get_filename_list(folder):
        raise ValueError(
            f"'{name}' is not in the models/{folder} folder: put the file there and press R in the editor, or choose "
            "another one."
        )
    return folder_paths.get_full_path_or_raise(folder, name)
