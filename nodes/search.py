"""Other words by which the editor's search finds a node."""

import dataclasses

from comfy_api.latest import io


def aliases(*words: str) -> dict[str, list[str]]:
    """The argument of `io.Schema` for `words`; none on a host whose schema does not know it, such as 0.3.75."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}
