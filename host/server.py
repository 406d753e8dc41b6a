"""The host's server, where one runs."""

import sys


def running():
    """The host's PromptServer, or None: nodes also run without one, and importing its module would begin one."""
    module = sys.modules.get("server")
    return getattr(module.PromptServer, "instance", None) if module else None
