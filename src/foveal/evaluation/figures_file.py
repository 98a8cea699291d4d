"""A JSON file of figures beside a split's metrics, typed and closed."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import ValidationError

from foveal.errors import ArtifactError
from foveal.files import read_json, write_json
from foveal.metrics.split_metrics import Frozen


class FiguresFile(Frozen):
    """What one option of `evaluate` measures, as its file holds it."""

    made_by: ClassVar[str]
    """The option."""

    def write(self, path: Path) -> None:
        """Write the JSON file.

        Raises:
            FovealError: the folder cannot be written to.
        """
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` has written.

        Raises:
            ArtifactError: the file is damaged.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise ArtifactError(
                f"{path} is damaged, or of another version.", fix=f"run foveal evaluate {cls.made_by} again."
            ) from error
