"""Attachments of messages: fetched from where they are, and read as text or as images."""

from .data_urls import data_url
from .fetched import fetched_contents, fetched_dialogs, fetched_messages
from .text import answer_text, readable, text_and_images, text_of

__all__ = [
    "answer_text",
    "data_url",
    "fetched_contents",
    "fetched_dialogs",
    "fetched_messages",
    "readable",
    "text_and_images",
    "text_of",
]
