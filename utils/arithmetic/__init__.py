"""Integers: exact arithmetic, polyphase bands, colours."""
