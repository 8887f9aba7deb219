"""Events, sent to URLs: `webhook_messages` makes messages of what transactions recorded, `webhook_sender` sends them
until their receivers have taken them, by `webhook_client`, signed as `webhook_signature` has it. Start with the sender.
"""
