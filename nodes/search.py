"""Other words by which the editor's search finds a node."""

from ..host import compat


def aliases(*words: str) -> dict[str, list[str]]:
    """Return the argument of `io.Schema` for `words`, empty on a host whose search does not know it."""
    return {"search_aliases": list(words)} if compat.has_search_aliases() else {}
