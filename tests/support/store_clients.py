"""Clients of the artifact store in the tests' own process: what botocore makes of S3's description is made once.

Each replica has a client of its own, which makes 10 ms of a processor's work of the same description.
"""

from typing import Any

import pytest
from botocore import regions
from botocore.client import ClientCreator
from botocore.endpoint_provider import EndpointProvider
from botocore.model import ServiceModel


def share_descriptions(patch: pytest.MonkeyPatch) -> None:
    """Have all clients share the models of services, and the rules by which their addresses are found."""
    load = ClientCreator._load_service_model
    models: dict[str, ServiceModel] = {}
    rules: dict[int, tuple[dict[str, Any], EndpointProvider]] = {}

    def model(creator: Any, name: str, api_version: str | None = None) -> ServiceModel:
        if name not in models:
            models[name] = load(creator, name, api_version)
        return models[name]

    def provider(ruleset_data: dict[str, Any], partition_data: dict[str, Any]) -> EndpointProvider:
        # The data are kept with it, so that no others get their id.
        if id(ruleset_data) not in rules:
            rules[id(ruleset_data)] = ruleset_data, EndpointProvider(ruleset_data, partition_data)
        return rules[id(ruleset_data)][1]

    patch.setattr(ClientCreator, "_load_service_model", model)
    patch.setattr(regions, "EndpointProvider", provider)
