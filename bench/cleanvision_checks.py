"""CleanVision's nine checks on a folder; run by `bench/audit_speed.py` with the Python of `bench/.venv-peers`.

Prints one JSON object on stdout: the seconds of the checks without the start of Python, and what was found.
"""

import argparse
import contextlib
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    from cleanvision import Imagelab

    started = time.perf_counter()
    # What it says goes to stderr, so that stdout is the JSON alone.
    with contextlib.redirect_stdout(sys.stderr):
        lab = Imagelab(data_path=str(wanted.images))
        lab.find_issues()
    seconds = time.perf_counter() - started
    summary = lab.issue_summary.set_index("issue_type")["num_images"]
    found = {str(name): int(count) for name, count in summary.items()}
    print(json.dumps({"seconds": seconds, "num_images": len(lab.issues), "found": found,
                      "version": version("cleanvision")}))  # fmt: skip


if __name__ == "__main__":
    main()
