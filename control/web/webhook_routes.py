"""The operations on webhooks."""

from control.api import pagination, webhooks
from control.api.bodies import requests, responses
from control.api.bodies.responses import Page
from control.api.operations import Operation

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/v1/webhooks",
        "Webhooks",
        webhooks.list_webhooks,
        "admin",
        {200: Page[responses.ListedWebhook]},
        query=pagination.Paging,
    ),
    Operation(
        "POST",
        "/v1/webhooks",
        "Add a webhook",
        webhooks.create,
        "admin",
        {201: responses.MadeWebhook},
        ("name_taken", "webhook_refused", "too_many_webhooks", "unknown_webhook"),
        body=requests.NewWebhook,
    ),
    Operation(
        "DELETE",
        "/v1/webhooks/{name}",
        "Remove a webhook",
        webhooks.remove,
        "admin",
        {204: None},
        ("unknown_webhook",),
    ),
    Operation(
        "POST",
        "/v1/webhooks/{name}/test",
        "Send a message to a webhook",
        webhooks.test,
        "admin",
        {201: responses.WebhookTest},
        ("unknown_webhook", "webhook_refused"),
    ),
    Operation(
        "GET",
        "/v1/webhook-deliveries",
        "What became of messages to webhooks",
        webhooks.list_deliveries,
        "admin",
        {200: Page[responses.WebhookDelivery]},
        query=webhooks.DeliveryFilter,
    ),
)
