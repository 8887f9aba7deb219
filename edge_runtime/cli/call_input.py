"""What `skerry-edge call` takes from files: the manifest, and the values of secrets."""

import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson

from control.protocol.manifest import Manifest, completed, unfit
from edge_runtime.errors import CodedError
from edge_runtime.files import FileUnfit
from edge_runtime.release import secrets


def read_manifest(
    file: Path | None, with_sql: bool, config: dict[str, str], names: list[str], time_limit: int | None
) -> tuple[str, Manifest]:
    """Return the function's name, empty where no file says it, and its manifest: that of the file, with what the
    options add. `with_sql`: whether the call has a database; without a file, the function may write to it. `names` are
    secrets that are given.

    Raises: click's, when the file can't be read or the manifest isn't valid.
    """
    name, fields = _content(file)
    if file is None and with_sql:
        fields["sql"] = "write"
    # What is of another type there is told below.
    if config and isinstance(there := fields.get("config", {}), dict):
        fields["config"] = {**there, **config}
    if names and isinstance(listed := fields.get("secrets", []), list):
        fields["secrets"] = [*listed, *(each for each in names if each not in listed)]
    if time_limit is not None:
        fields["time_limit_ms"] = time_limit
    try:
        return name, completed(msgspec.convert(fields, Manifest))
    except msgspec.ValidationError as error:
        where = f" in {file}" if file is not None else ""
        raise click.UsageError(f"the manifest{where} isn't valid: {unfit(error, Manifest)}") from None


def _content(file: Path | None) -> tuple[str, dict[str, Any]]:
    if file is None:
        return "", {}
    try:
        content = file.read_bytes()
        fields = orjson.loads(content) if file.suffix == ".json" else tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the manifest {file} can't be read: {error}") from None
    if not isinstance(fields, dict):
        raise click.UsageError(f"the manifest {file} is no table of names and values")
    if "module" not in fields:
        return "", fields
    # A project's function.toml has it as a table.
    manifest = fields.get("manifest", {})
    if not isinstance(manifest, dict):
        raise click.UsageError(f"manifest in {file} is no table of names and values")
    return str(fields.get("name", "")), manifest


def secret_values(name: str, manifest: Manifest, file: Path | None, given: dict[str, str]) -> dict[str, str]:
    """Return the values of the secrets that the manifest names: those given, else those of the function's table in the
    file.

    Raises: CodedError secrets_unfit, when the file can't be used; secret_missing, when one has no value.
    """
    try:
        there = {} if file is None else secrets.read(file).get(name, {})
    except FileUnfit as error:
        raise CodedError("secrets_unfit", f"The file of secrets can't be used: {error}.") from None
    values = {**there, **given}
    missing = [each for each in manifest.secrets if each not in values]
    if missing:
        listed = ", ".join(missing)
        cure = f"give --secret {missing[0]}=VALUE, or --secrets FILE"
        if file is not None:
            cure = f"put it into {file}, in the table [{name}], or give --secret {missing[0]}=VALUE"
        raise CodedError("secret_missing", f"The function needs the secret {listed}, which the call hasn't: {cure}.")
    return {each: values[each] for each in manifest.secrets}
