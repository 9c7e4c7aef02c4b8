"""OpenAI's protocol at our door: clients written for it work by changing their ``base_url`` to ``http://HOST:PORT/v1``.

Requests become requests of our own operations, and what these answer becomes OpenAI's answers and chunks. All but `routes`
is pure: no I/O, no clock. docs/openai.md says of each field whether it is honoured, refused or without effect.
"""
