"""The parts of a table of settings: a dataclass whose fields say what they are for and which values they take.

Both sides have one, and everything else is derived from it: environment variables, flags, `settings`, and with
`just settings` the lists in docs/settings.md and `setting_names`.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, Final, TypeVar

_KEY: Final = "about"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class About:
    """What a setting is for, and which values it takes."""

    text: str
    """What it is, in whole sentences. The text of a time begins with "Seconds", that of a size with "Bytes"."""
    more: str = ""
    """Further text for docs/settings.md only, in Markdown."""
    least: float | None = None
    most: float | None = None
    bounds: str = ""
    """`least` and `most` in words, where their numbers say little."""
    default: str = ""
    """The default in words, where it depends on the machine."""

    @property
    def unit(self) -> str:
        """Return ``seconds``, ``bytes``, or ''."""
        word = self.text.partition(" ")[0].lower()
        return word if word in ("seconds", "bytes") else ""

    @property
    def flag_help(self) -> str:
        """Return the text without Markdown's marks around single words."""
        parts = self.text.split("`")
        return "".join(f"`{part}`" if at % 2 and " " in part else part for at, part in enumerate(parts))


def about(text: str, more: str = "", **rest: Any) -> Mapping[str, About]:
    """Return the metadata of a dataclass's field; `rest` are further fields of `About`."""
    return {_KEY: About(text, more, **rest)}


def setting(
    default: _T,
    text: str,
    more: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    bounds: str = "",
    secret: bool = False,
) -> _T:
    """Declare a setting that has a default. A `secret` one is never shown."""
    metadata = about(text, more, least=least, most=most, bounds=bounds)
    return field(default=default, repr=not secret, metadata=metadata)


def about_of(each: "Field[Any]") -> About:
    """Return what the table says about a field."""
    found: About = each.metadata[_KEY]
    return found
