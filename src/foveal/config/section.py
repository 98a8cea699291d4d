"""The base of every configuration section."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the configuration: immutable, and closed to keys it does not know.

    A section lives beside the code that uses it. Every field says its unit in its description. Where a field may be
    "auto", a subclass named `Resolved...` narrows it to the type that is left once `resolve` has seen the facts.
    No number may be infinite. Where text is wanted, a number is taken as text: classes may be called 7.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )
