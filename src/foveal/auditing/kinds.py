"""Every kind of finding: what it says to a person, what its value is, and why it matters."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How findings of one kind are told.

    Attributes:
        title: a heading.
        about: what the findings are about: a sample, a pair of samples, a class, a split, or the whole data.
        value: what the column `value` holds, with its unit; empty where it holds nothing.
        why: one or two sentences for a person: why it matters and what is done about it.
    """

    title: str
    about: str
    value: str
    why: str


KINDS: Mapping[str, Kind] = {
    # What makes test numbers lie
    "leak": Kind(
        "Leakage across splits",
        "pair",
        "similarity of the pair, 0..1",
        "An image to validate or test on has a copy in training, so the result on it says nothing about new images.",
    ),
    "label_conflict": Kind(
        "One picture under two labels",
        "pair",
        "similarity of the pair, 0..1",
        "The same picture is filed under two classes, so at least one of them is wrong.",
    ),
    "class_names_alike": Kind(
        "Class names that differ only by case or spaces",
        "class",
        "images of the smaller class",
        "They are probably one class; kept apart, half of its images count as mistakes.",
    ),
    "class_too_small": Kind(
        "Classes with too few images",
        "class",
        "independent images",
        "A class needs independent images to learn from, to validate and to test on.",
    ),
    "empty_class": Kind("Class folders without a usable image", "class", "images", "Nothing can be learnt of them."),
    "class_missing_in_split": Kind(
        "Classes that a split lacks",
        "class",
        "images in the other splits",
        "What is not in training cannot be learnt, and what is not in test is not measured.",
    ),
    # Files
    "unreadable": Kind(
        "Files that cannot be used", "sample", "", "They are quarantined: nothing ever takes the place of an image."
    ),
    "corrupt_jpeg": Kind(
        "JPEG files with damaged data",
        "sample",
        "",
        "They decode, but part of what they show is garbage; ordinary decoders do not tell.",
    ),
    "animated": Kind("Animations and files of several pages", "sample", "frames", "Only the first frame is used."),
    # Pictures that say little
    "blank": Kind("Blank pictures", "sample", "contrast, 0..0.5", "There is nothing in them to learn."),
    "tiny": Kind("Tiny pictures", "sample", "shorter side, pixels", "They hold less detail than the rest."),
    "blurred": Kind("Blurred pictures", "sample", "sharpness", "They lack the detail that the rest has."),
    "dark": Kind("Dark pictures", "sample", "brightness, 0..1", "What they show is nearly black."),
    "overexposed": Kind("Overexposed pictures", "sample", "brightness, 0..1", "What they show is nearly white."),
    "odd_aspect": Kind(
        "Unusual shapes", "sample", "longer side over shorter", "A square crop loses most of such a picture."
    ),
    "binarised": Kind(
        "Pictures of a few values only",
        "sample",
        "distinct values",
        "They look like masks or thresholded pictures among photographs.",
    ),
    "odd_channels": Kind(
        "Grey pictures among colour ones, or the reverse",
        "sample",
        "",
        "A difference that comes from the source and not from what is shown is easily learnt in its place.",
    ),
    # Copies
    "exact_duplicate": Kind(
        "Exact duplicates", "pair", "1", "The same bytes twice count twice, and leak when they are split apart."
    ),
    "near_duplicate": Kind(
        "Near duplicates",
        "pair",
        "similarity of the pair, 0..1",
        "Copies that were resized, turned, mirrored, recoloured or cut belong on one side of every split.",
    ),
    "copy_by_name": Kind(
        "Augmented copies by their name",
        "pair",
        "files of this original",
        "Names such as x_aug_3 or 'x (1)' say that these files were made from one original.",
    ),
    "fewer_originals": Kind(
        "Classes that are smaller than they look",
        "class",
        "independent originals",
        "Most of the files are copies of each other; the class counts without them are the true ones.",
    ),
    # Classes and splits
    "class_imbalance": Kind(
        "Unequal classes",
        "data",
        "images of the largest class for each of the smallest",
        "Guessing the largest class looks good; read macro F1 and the baseline beside the accuracy.",
    ),
    "split_proportions": Kind(
        "Unusual split", "split", "share of the images", "Small splits give wide intervals; unequal ones mislead."
    ),
    "shortcut": Kind(
        "A class can be told without looking at the picture",
        "class",
        "balanced accuracy of telling the class by these facts alone, cross-validated, 0..1",
        "Size, format, brightness or border give the class away; a model will learn them in place of what is shown.",
    ),
    # With --deep
    "off_domain": Kind(
        "Pictures that do not belong",
        "sample",
        "distance to the nearest others, in medians of the data",
        "They are far from everything else in what a network sees.",
    ),
    "wrong_label": Kind(
        "Labels that are probably wrong",
        "sample",
        "probability of the given label, 0..1",
        "A model that did not train on the image is sure of another class.",
    ),
}
