"""Numbers as people read them, which never round to a claim that is not true."""

from collections.abc import Sequence

from foveal.metrics import shown

MISSING = "–"


def share(value: float | None) -> str:
    """A figure with two decimals, or as many more as it takes not to look like 0 or 1."""
    return MISSING if value is None else shown(value)


def fine(value: float | None) -> str:
    """A figure with three decimals, for tables and small quantities; more where it would look like 0 or 1."""
    if value is None:
        return MISSING
    text = f"{value:.3f}"
    return text if float(text) not in (0.0, 1.0) or float(text) == value else shown(value)


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A value and its interval in brackets, if it has one."""
    return share(value) if value is None or bounds is None else f"{share(value)} {interval(bounds)}"


def interval(bounds: Sequence[float]) -> str:
    """The low and the high end in brackets."""
    return f"[{share(bounds[0])}, {share(bounds[1])}]"


def percent(value: float) -> str:
    """A share of 0..1 as a percentage that says 0 and 100 only where it is exactly so."""
    if value in {0, 1}:
        return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"
    if value < 0.005:
        return "<1\N{NO-BREAK SPACE}%"
    return ">99\N{NO-BREAK SPACE}%" if value > 0.995 else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A count and its noun: "1 image", "2,062 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time span in the unit that suits it."""
    if seconds < 0.095:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
