"""Attachments of messages: fetched from where they are, and read as text or as images."""

from .text import data_url, readable, text_of

__all__ = ["data_url", "readable", "text_of"]
