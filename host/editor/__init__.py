"""Routes for the editor: facts about files, estimates, and problems that a run would have."""
