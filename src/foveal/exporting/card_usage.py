"""How to run an exported model, as its card says it: code that runs as it stands."""

from pathlib import Path

from foveal.exported.spec import ExportSpec
from foveal.exporting.card_facts import CardFacts
from foveal.exporting.markdown import prose

_ONNX_INSIDE = """import io
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps

options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # errors alone: an input that may be left out is worth a warning to it
session = onnxruntime.InferenceSession("{file}", options, providers=["CPUExecutionProvider"])
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
with Image.open("photo.jpg") as image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB" and (profile := upright.info.get("icc_profile")):  # telephones write Display P3
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        upright = ImageCms.profileToProfile(upright, source, srgb, ImageCms.Intent.PERCEPTUAL)
    pixels = np.asarray(upright.convert("RGB"))  # uint8, height x width x 3
(probabilities,) = session.run(["probabilities"], {{"image": pixels[None]}})
best = int(probabilities[0].argmax())
print(class_names[best], float(probabilities[0, best]))
"""
_ONNX_OUTSIDE = """import json
import onnxruntime
from pathlib import Path
from foveal.pixels.geometry import Geometry, to_square, to_store
from foveal.pixels.policy import PixelPolicy, decode

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
pixels = decode(Path("photo.jpg"), PixelPolicy()).pixels
squares = {{{squares}}}
feeds = {{name: to_square(to_store(pixels, each), each)[None] for name, each in squares.items()}}
(probabilities,) = session.run(["probabilities"], feeds)
best = int(probabilities[0].argmax())
print(class_names[best], float(probabilities[0, best]))
"""
_TIMM = """import io
import timm
import torch
from PIL import Image, ImageCms, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with Image.open("photo.jpg") as image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB" and (profile := upright.info.get("icc_profile")):  # telephones write Display P3
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        upright = ImageCms.profileToProfile(upright, source, srgb, ImageCms.Intent.PERCEPTUAL)
    pixels = transform(upright.convert("RGB"))
with torch.inference_mode():
    probabilities = (model(pixels[None]) / {temperature!r}).softmax(1)[0]
best = int(probabilities.argmax())
print(model.pretrained_cfg["label_names"][best], float(probabilities[best]))
"""
_TORCHSCRIPT = """import torch
from pathlib import Path
from foveal.pixels.geometry import Geometry, to_square, to_store
from foveal.pixels.policy import PixelPolicy, decode

model = torch.jit.load("{file}")
pixels = decode(Path("photo.jpg"), PixelPolicy()).pixels
geometry = {geometry}
square = torch.from_numpy(to_square(to_store(pixels, geometry), geometry)[None])
with torch.inference_mode():
    print(model(square)[0])
"""


def usage(facts: CardFacts, model_file: str, export: ExportSpec | None) -> list[str]:
    """The part of the card.

    Args:
        facts: of the model.
        model_file: its file, whose ending decides.
        export: what an ONNX file says of itself.
    """
    lines = ["## How to run it", ""]
    suffix = Path(model_file).suffix
    if suffix == ".onnx":
        lines += _of_onnx(facts, model_file, export)
    elif suffix == ".safetensors":
        code = _TIMM.format(temperature=facts.spec.temperature)
        is_padded = facts.looks[0].fit == "pad"
        lines += [
            *_python("With timm, in this folder:", code),
            "The logits are divided by the temperature, as foveal does it. timm's transform is close to the steps "
            "above and not always the same: the longer side and the place of the cut may differ by one pixel"
            + (", and what is filled up has the mean colour" if is_padded else "")
            + ". With the same square both networks say the same.",
            "",
        ]
    else:
        geometry = repr(facts.looks[0].geometry())
        lines += _python("With torch, in this folder:", _TORCHSCRIPT.format(file=model_file, geometry=geometry))
    return lines


def _of_onnx(facts: CardFacts, model_file: str, export: ExportSpec | None) -> list[str]:
    if export is not None and export.resize == "outside":
        squares = ", ".join(f"{look.input!r}: {look.preprocessing.geometry()!r}" for look in export.looks)
        lines = _python(
            "With ONNX Runtime, in this folder; the graph takes finished squares:",
            _ONNX_OUTSIDE.format(file=model_file, squares=squares),
        )
    else:
        lines = _python(
            "With ONNX Runtime, in this folder; the graph takes RGB bytes of any size, and resizes, normalises and "
            "calibrates by itself:",
            _ONNX_INSIDE.format(file=model_file),
        )
        lines += [
            "That serves for usual files, those of telephones with their colour profile included. For CMYK, 16 bits, "
            "alpha and grey with a profile take `foveal predict`, which decodes as in training.",
            "",
        ]
    lines += ["With foveal, which needs no torch for it:", "", "```bash", "pip install 'foveal[serve]'",
              "foveal predict . photo.jpg", "foveal serve .", "```", ""]  # fmt: skip
    if export is not None:
        lines += [
            "The output `heatmap` says what each place of the square adds to each class (Zhou et al. 2016)."
            if export.heatmap
            else f"The graph gives no heatmap: {prose(export.heatmap_reason.rstrip('.'))}.",
            "",
        ]
    return lines


def _python(words: str, code: str) -> list[str]:
    return [words, "", "```python", *code.rstrip().splitlines(), "```", ""]
