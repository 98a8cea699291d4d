"""What the licences of starting weights allow, as far as their names say it."""

import re
from typing import Literal

from foveal.exporting.markdown import plain

Terms = Literal["open", "not_commercial", "research", "own", "none", "unknown"]

HUB_LICENCES = frozenset(
    ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "gemma",
     "apple-ascl", "apple-amlr", "bsd-2-clause", "cc0-1.0", "unknown")
)  # fmt: skip
"""Those that timm's zoo names and the hub knows by the same name."""

_OPEN = frozenset(("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0", "cc-by-sa-4.0"))
_RESEARCH = frozenset(("apple-amlr", "seer-license"))
_STRICTEST_FIRST: tuple[Terms, ...] = ("not_commercial", "research", "unknown", "own", "open", "none")


def terms_of(licence: str) -> Terms:
    """What a licence allows, by its name; of several, joined by " + ", the strictest.

    Args:
        licence: as a bundle records it.

    Returns:
        "open" for the usual free ones; "not_commercial" and "research" where the name forbids more than that; "own" for
        licences with terms of their own; "none" for a random start; "unknown" where nothing is known.
    """
    found = {_terms_of_one(part.strip().lower()) for part in licence.split(" + ")}
    return next(terms for terms in _STRICTEST_FIRST if terms in found)


def _terms_of_one(name: str) -> Terms:
    if name.startswith("none"):
        return "none"
    if not name or name == "unknown":
        return "unknown"
    if "nc" in re.split("[^a-z0-9]+", name) or re.search("non-?commercial", name):
        return "not_commercial"
    if name in _RESEARCH or "research" in name:
        return "research"
    return "open" if name in _OPEN else "own"


def sentence(licence: str, tag: str = "") -> str:
    """What a person who ships the model must know, as Markdown."""
    of = f" ({plain(tag)})" if tag else ""
    name = plain(licence)
    return {
        "not_commercial": f"**NON-COMMERCIAL. The training started from weights{of} under {name}, which forbids "
        "commercial use, and what is trained from them inherits that.**",
        "research": f"**FOR RESEARCH ONLY. The training started from weights{of} under {name}, which allows no "
        "other use, and what is trained from them inherits that.**",
        "unknown": f"The licence of the weights that the training started from{of} is **unknown**. Find it out "
        "before this model is given to anybody.",
        "own": f"The training started from weights{of} under {name}, a licence with terms of its own. Read it "
        "before this model is given to anybody.",
        "open": f"The training started from weights{of} under {name}.",
        "none": "The training started from random weights, so that no licence of other weights bears on this model.",
    }[terms_of(licence)]


def hub_fields(licence: str) -> dict[str, str]:
    """`license`, and what goes with it, as the head of a model card on the hub takes them."""
    name = licence.strip().lower()
    if terms_of(licence) in {"none", "unknown"}:
        return {"license": "unknown"}
    if name in HUB_LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": re.sub("[^a-z0-9.]+", "-", name).strip("-")}
