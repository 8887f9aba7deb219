"""Sends events to URLs: `webhook_messages` makes messages from what transactions recorded, `webhook_sender` sends them
until their receivers have taken them, `webhook_client` makes each request, and `webhook_signature` signs it. Start with
the sender.
"""
