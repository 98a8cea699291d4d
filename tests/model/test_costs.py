"""The summary says what trains, and counting leaves everything in its mode. The counts themselves: test_build.py."""

from foveal.model.build import Architecture, build
from foveal.model.costs import run_blank, summarise
from foveal.model.freeze import apply_freeze, set_training_mode


def test_the_summary_tells_whole_partly_frozen_and_empty_parts_apart() -> None:
    classifier = build(Architecture(name="resnet18", num_classes=3, image_size=32))
    apply_freeze(classifier, "partial")
    lines = {line.split()[0]: line.split()[-1] for line in summarise(classifier, ["a", "b", "c"]).splitlines()[6:]}
    expected = {"conv1": "frozen", "act1": "-", "layer3": "frozen", "layer4": "partly", "layer4.0": "partly"}
    assert {name: lines[name] for name in expected} == expected
    assert lines["layer4.1"] == lines["fc"] == "yes"


def test_a_blank_image_leaves_frozen_parts_in_evaluation_mode() -> None:
    classifier = build(Architecture(name="test_resnet", num_classes=3, image_size=32))
    apply_freeze(classifier, "stages:1")
    set_training_mode(classifier)
    modes = [module.training for module in classifier.modules()]
    assert len(set(modes)) == 2
    run_blank(classifier)
    assert [module.training for module in classifier.modules()] == modes
