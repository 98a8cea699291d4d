"""One file for a whole project: which sections there are besides those that a verb reads, and who reads them.

A section lives beside the code that uses it, and an import may only point down. Here are therefore the names of modules
alone: one is imported when a file or an override holds a section that the verb at hand does not read, to check it as
the verb would that reads it. Nothing heavier than pydantic comes with any of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Reader:
    """The root of what some verbs read.

    Attributes:
        module: where its model is declared.
        name: of its model there.
        verbs: which verbs read what no reader before it has, in words.
    """

    module: str
    name: str
    verbs: str

    def model(self) -> type[BaseModel]:
        """The root itself."""
        found: type[BaseModel] = getattr(import_module(self.module), self.name)
        return found


READERS = (
    Reader("foveal.training.config", "Config", "foveal train and the other verbs that take images"),
    Reader("foveal.exporting.config", "ExportSettings", "foveal export"),
    Reader("foveal.serving.config", "ServeSettings", "foveal serve"),
)


def reader_of(section: str) -> Reader | None:
    """Who reads a section, or a key of the root, if anybody does."""
    return next((reader for reader in READERS if section in reader.model().model_fields), None)


def other_sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section, or key of the root, that a root does not have, with the root that has it."""
    seen = set(model.model_fields)
    for reader in READERS:
        root = reader.model()
        for section in root.model_fields:
            if section not in seen:
                seen.add(section)
                yield section, root
