"""`python3 dev.py bench gpu`: checks and measurements on a graphics card, or in small on a CPU."""
