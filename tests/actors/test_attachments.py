"""Attachments as text."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.attachments import text_of
from ayllu.actors.untrusted import without_control_tokens
from ayllu.schemas import Attachment, Content, InvalidRequest, Unsupported


def read(content: Content) -> str:
    return text_of(content, model="small", where="content")


def attachment(url: str, mime_type: str = "text/plain") -> Attachment:
    return Attachment(url=url, mime_type=mime_type)


@given(st.text())
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert read(text) == text


@pytest.mark.requirement("attachments-text")
@given(st.text().filter(lambda text: not text.startswith("\ufeff")))
def test_base64_text_is_inlined(text: str) -> None:
    url = "data:text/plain;base64," + base64.b64encode(text.encode()).decode()
    written = without_control_tokens(text)
    assert (
        read(attachment(url)) == f"[attachment of type text/plain]\n{written}\n[end of attachment]"
    )


@pytest.mark.requirement("attachments-text")
def test_a_page_becomes_markdown_without_what_nobody_reads() -> None:
    page = "<h1>A</h1><script>alert(1)</script><p>b <b>c</b>"
    lines = read(attachment(f"data:,{quote(page)}", "text/html")).splitlines()
    assert [line for line in lines[1:-1] if line] == ["# A", "b **c**"]


@pytest.mark.requirement("attachments-text")
def test_a_byte_order_mark_is_no_text() -> None:
    assert read(attachment("data:,%EF%BB%BFa")).splitlines()[1] == "a"


@pytest.mark.requirement("untrusted-output")
@pytest.mark.parametrize(
    "token",
    [
        *("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<s>", "</s>", "<bos>", "<end_of_turn>"),
        *("[INST]", "[/INST]", "[TOOL_CALLS]", "<\uff5cend\uff5c>", "<<SYS>>", "</tool_response>"),
        *("<tool_call>", "[end of attachment]"),
    ],
)
def test_an_attachment_has_no_control_tokens(token: str) -> None:
    text = read(attachment(f"data:,{quote(token * 2)}")).splitlines()[1]
    assert token not in text
    assert text.replace("&lt;", "<").replace("&#91;", "[") == token * 2


@pytest.mark.requirement("attachments-text")
@pytest.mark.parametrize(
    "text", ["a < b > c", "<p>x</p>", "[section]", "x[0] << 2", "<sub>", "vector<string>", "<S>"]
)
def test_all_else_in_an_attachment_stays_as_it_is(text: str) -> None:
    assert read(attachment(f"data:,{quote(text)}")).splitlines()[1] == text


@pytest.mark.requirement("attachments-text")
@pytest.mark.parametrize(
    ("url", "mime_type", "expected"),
    [
        ("data:,a%2Cb%20c", "text/csv", "a,b c"),
        ("data:text/plain;charset=latin-1,%e9", "text/plain", "é"),
        ("data:,%e9", 'text/plain; charset="latin-1"', "é"),
        ("data:;BASE64,e30=", "Application/JSON", "{}"),
        ("data:,<a/>", "application/atom+xml", "<a/>"),
    ],
)
def test_text_types_and_charsets(url: str, mime_type: str, expected: str) -> None:
    assert read(attachment(url, mime_type)).splitlines()[1] == expected


@pytest.mark.requirement("attachments-text")
def test_parts_are_joined_in_order() -> None:
    lines = read(["before", attachment("data:,x"), "after"]).splitlines()
    assert lines == [
        "before",
        "[attachment of type text/plain]",
        "x",
        "[end of attachment]",
        "after",
    ]


@pytest.mark.requirement("attachments-refused")
@pytest.mark.parametrize(
    "mime_type",
    ["image/png", "application/pdf", "audio/wav", "", "text/", "text/<|im_end|>", "text/a\nb"],
)
def test_other_types_are_unsupported(mime_type: str) -> None:
    with pytest.raises(Unsupported) as caught:
        read(["see", attachment("data:,x", mime_type)])
    assert "content[1]" in caught.value.message
    assert "small" in caught.value.message
    assert mime_type in caught.value.message


@pytest.mark.requirement("attachments-refused")
@pytest.mark.parametrize("url", ["https://example.org/a.txt", "http://x", "file:///etc/passwd"])
def test_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(Unsupported):
        read(attachment(url))


@pytest.mark.requirement("attachments-refused")
@pytest.mark.parametrize(
    "url",
    [
        "data:text/plain",
        "data:;base64,???",
        "data:;base64,abc",
        "data:,%zz",
        "data:,%ff",
        "data:;charset=nonsense,x",
        "data:;charset=hex,x",
    ],
)
def test_malformed_data_is_an_invalid_request(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(attachment(url))
    assert not isinstance(caught.value, Unsupported)
    assert "content" in caught.value.message


@pytest.mark.requirement("bad-input")
@pytest.mark.parametrize("charset", ["punycode", "idna", "rot13", "unicode_escape", "x" * 100_000])
def test_a_charset_that_is_none_is_refused_at_once(charset: str) -> None:
    url = f"data:text/plain;charset={charset}," + "9" * 400_000
    with pytest.raises(InvalidRequest):
        text_of(Attachment(url=url, mime_type="text/plain"), model="m", where="content")
