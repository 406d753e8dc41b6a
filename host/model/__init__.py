"""The DiT as a MODEL of the host: loading, precision, offloading, attention, memory and LoRAs."""
