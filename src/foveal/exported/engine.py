"""Running exported models on ONNX Runtime: the same predictions as `foveal.inference`, without torch."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ArtifactError
from foveal.exported.opening import Export, open_export
from foveal.exported.spec import HEATMAP, IMAGE_INPUT, MEMBER_PROBABILITIES, PROBABILITIES
from foveal.metrics import softmax
from foveal.model.voting import logits_of, voted
from foveal.prediction import ImagePredictor, Seen


class OnnxPredictor(ImagePredictor):
    """An exported model that is ready to predict.

    Images are decoded and cut by the same functions as in training, and the graph gets finished squares, so that images
    of all sizes go into one batch.

    Args:
        model: the exported model, its file or its folder.
        batch_size: images that are computed together.
        num_workers: threads that decode.
        num_threads: threads that compute; None leaves it to ONNX Runtime.
        tta: test-time augmentation: none, flip, dihedral, crops5 or a number of views.

    Raises:
        ArtifactError: it is no exported model, is damaged, or was made under another pixel policy.
        ConfigError: a number is less than 1, or there is no such test-time augmentation.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: Export | str | PathLike[str],
        *,
        batch_size: int = 32,
        num_workers: int = 2,
        num_threads: int | None = None,
        tta: str = "none",
    ) -> None:
        export = model if isinstance(model, Export) else open_export(Path(model))
        self.path, self.spec = export.path, export.spec
        preprocessings = [look.preprocessing for look in self.spec.looks]
        super().__init__(
            self.spec.class_names,
            [(each.geometry(), each.policy()) for each in preprocessings],
            batch_size=batch_size,
            num_workers=num_workers,
            tta=tta,
        )
        # Of the file itself nothing is kept: the session has weights of its own.
        self._identity = f"onnx {export.sha256}"
        self._session = export.session(num_threads)

    @property
    def identity(self) -> str:
        """The SHA-256 of the file."""
        return self._identity

    def probabilities(self, seen: Sequence[Seen]) -> NDArray[np.float64]:
        """What the exported model says of images, see `ImagePredictor.probabilities`."""
        return self._mixed([self._run([self._output], seen, view)[0] for view in range(len(self.views))])

    def heatmaps(self, seen: Sequence[Seen]) -> NDArray[np.float32]:
        """Class activation maps of the plain view (Zhou et al. 2016).

        Args:
            seen: of each image what `prepare` gave; at least one.

        Returns:
            float32 [n, classes, h, w], over the square that the network sees: what each place adds to each class.

        Raises:
            ArtifactError: the graph has none; `spec.heatmap_reason` says why.
        """
        self._check_heatmap()
        return self._run([HEATMAP], seen, 0)[0]

    def probabilities_and_heatmaps(self, seen: Sequence[Seen]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """What `probabilities` and `heatmaps` give, in one run a view: [n, classes] and [n, classes, h, w].

        Raises:
            ArtifactError: the graph has no heatmaps; `spec.heatmap_reason` says why.
        """
        self._check_heatmap()
        plain, maps = self._run([self._output, HEATMAP], seen, 0)
        others = [self._run([self._output], seen, view)[0] for view in range(1, len(self.views))]
        return self._mixed([plain, *others]), maps

    def _check_heatmap(self) -> None:
        if not self.spec.heatmap:
            raise ArtifactError(f"{self.path} gives no heatmaps: {self.spec.heatmap_reason}")

    @property
    def _output(self) -> str:
        """What of the graph is taken of each view: of an ensemble with several, what each member says."""
        return PROBABILITIES if self.spec.vote is None or len(self.views) == 1 else MEMBER_PROBABILITIES

    def _mixed(self, by_view: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """The answer out of what each view gave: float64 [n, classes]."""
        if len(by_view) == 1:
            return _of_one(by_view[0])
        if self.spec.vote is None:
            return np.asarray(np.mean([_of_one(said) for said in by_view], axis=0))
        # Each member takes the mean over its views before they vote, as `foveal.inference.Predictor` does.
        members = np.mean([[_of_one(one) for one in said] for said in by_view], axis=0)
        mixed = voted(members, self.spec.vote, [member.weight for member in self.spec.members])
        return softmax(logits_of(mixed), self.spec.temperature)

    def _run(self, outputs: Sequence[str], seen: Sequence[Seen], view: int) -> list[NDArray[np.float32]]:
        feeds: dict[str, NDArray[np.uint8]] = {}
        for spec, look in zip(self.spec.looks, self.looks, strict=True):
            feeds[spec.input] = np.stack([each[look][view] for each in seen])
        if self.spec.resize == "inside":
            feeds[IMAGE_INPUT] = np.zeros((0, 1, 1, 3), dtype=np.uint8)
        return [np.asarray(found) for found in self._session.run(list(outputs), feeds)]


def _of_one(said: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities that add up to 1 also in double precision: float64 [n, classes]."""
    values = said.astype(np.float64)
    return np.asarray(values / values.sum(axis=1, keepdims=True))
