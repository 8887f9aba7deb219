"""The modules of C declarations are made of the headers beside them."""

from pathlib import Path

import pytest

from scripts import bindings

MODULES = list(bindings.modules())


@pytest.mark.parametrize(("module", "text"), MODULES, ids=[module.stem for module, _ in MODULES])
def test_a_module_is_what_its_header_says(module: Path, text: str) -> None:
    assert module.read_text() == text, "run `just bindings`"
