"""Small PDF documents, written by hand."""

from __future__ import annotations

from collections.abc import Sequence


def pdf_of(*pages: str) -> bytes:
    """Return a document with a line of text a page, in Helvetica."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        font,
    ]
    for number, text in enumerate(pages):
        shown = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
        contents = f"{5 + 2 * number} 0 R"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents {contents} "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode(),
            stream(shown),
        ]
    return document(objects)


def stream(data: bytes, extra: str = "") -> bytes:
    """Return a stream object."""
    return f"<< /Length {len(data)} {extra} >>\nstream\n".encode() + data + b"\nendstream"


def document(objects: Sequence[bytes]) -> bytes:
    """Return a document of objects, the first of which is its catalog."""
    written = bytearray(b"%PDF-1.4\n")
    places = []
    for number, one in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj\n".encode() + one + b"\nendobj\n"
    start = len(written)
    written += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    for place in places:
        written += f"{place:010} 00000 n \n".encode()
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return bytes(written) + trailer.encode()
