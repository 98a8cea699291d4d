"""How any section is declared and read; the sections themselves live beside the code that uses them."""

from foveal.config.loading import dump_yaml, known_keys, load, read_yaml, validate
from foveal.config.section import Section

__all__ = ["Section", "dump_yaml", "known_keys", "load", "read_yaml", "validate"]
