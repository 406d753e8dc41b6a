"""What the editor may ask before a run: file facts, estimates and problems, answered over HTTP."""
