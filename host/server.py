"""The host's server, if one is running."""

import sys


def running():
    """Return the host's PromptServer, or None. Importing its module would start one, and nodes also run without."""
    module = sys.modules.get("server")
    return getattr(module.PromptServer, "instance", None) if module else None
