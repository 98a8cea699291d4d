"""What one check has to say: its findings, or why it could not be made."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveal.auditing.findings import Finding


@dataclass(frozen=True)
class Checked:
    """The outcome of one check.

    Attributes:
        check: its name; that of the kind of finding where it looks for one kind only.
        findings: what it found; nothing is good news, unless it was skipped.
        skipped: one sentence, why it could not be made; empty where it was.
        scope: one sentence, what was looked at, where that is not all.
    """

    check: str
    findings: Sequence[Finding] = ()
    skipped: str = ""
    scope: str = ""

    def summary(self) -> dict[str, str]:
        """The check as summary.json lists it: `check`, `status` (done or skipped) and `detail`."""
        status = "skipped" if self.skipped else "done"
        return {"check": self.check, "status": status, "detail": self.skipped or self.scope}
