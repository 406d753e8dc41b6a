"""The streaming VAE as a VAE of the host, and a VIDEO that is decoded while it is saved."""
