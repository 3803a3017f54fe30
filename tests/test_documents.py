"""Documents: text out of whatever people store, and a clear reason where there is none."""

from __future__ import annotations

import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from worker.kinds.summaries import chunks, documents
from worker.kinds.summaries.documents import Unreadable
from worker.kinds.text import tokens

CHINESE = "第三季度的销售额上升了百分之十二。" * 20


def pdf(*pages: str) -> bytes:
    """A PDF whose pages say so, by the book's shortest form."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    bodies = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for n, text in enumerate(pages):
        shown = f"BT /F1 12 Tf 40 700 Td ({text}) Tj ET" if text else ""
        font = "/Resources<</Font<</F1 3 0 R>>>>"
        bodies.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]{font}/Contents {5 + 2 * n} 0 R>>")
        bodies.append(f"<</Length {len(shown)}>>stream\n{shown}\nendstream")
    return _numbered([body.encode() for body in bodies])


def bomb() -> bytes:
    """A small PDF whose only page unpacks to 200 MB."""
    packed = zlib.compress(b" " * 200_000_000, 9)
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R>>"
    stream = b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(packed), packed)
    return _numbered([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 1/Kids[3 0 R]>>", page, stream])


def encrypted(plain: bytes) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(plain)))
    writer.encrypt("secret")
    written = BytesIO()
    writer.write(written)
    return written.getvalue()


def _numbered(bodies: list[bytes]) -> bytes:
    made = b"%PDF-1.4\n"
    offsets = []
    for n, body in enumerate(bodies, 1):
        offsets.append(len(made))
        made += b"%d 0 obj%s endobj\n" % (n, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(bodies) + 1, len(made))
    return made + b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1) + table + end


@pytest.mark.parametrize(
    ("data", "content_type", "text"),
    [
        ("plain words", "text/plain", "plain words"),
        ("# Title\r\n\r\n\r\n\r\nbody\r", "text/markdown", "# Title\n\nbody"),
        (CHINESE.encode("gb18030"), "", CHINESE),
        (CHINESE.encode("gb18030"), "text/plain; charset=ISO-8859-1", CHINESE),
        ("été à Paris, Müller & Söhne".encode("cp1252"), "", "été à Paris, Müller & Söhne"),
        ("東京の天気".encode("shift_jis"), "text/plain; charset=Shift_JIS", "東京の天気"),
        ("\ufeffmarked".encode(), "", "marked"),
        ("你好 wide".encode("utf-16"), "", "你好 wide"),
        ("wide without a mark".encode("utf-16-le"), "", "wide without a mark"),
        (b"a charset nobody knows", "text/plain; charset=klingon", "a charset nobody knows"),
        (b"bell \x07 and \x1b[0m escape", "", "bell \ufffd and \ufffd[0m escape"),
    ],
)
def test_text_is_read_in_the_encoding_that_it_has(data: bytes | str, content_type: str, text: str) -> None:
    assert documents.text_of(data.encode() if isinstance(data, str) else data, content_type) == text


def test_a_page_is_read_as_people_see_it() -> None:
    page = (
        "<!doctype html><html><head><title>News &amp; views</title><style>p {color: red}</style>"
        "<script>alert('no')</script></head><body><!-- hidden --><h1>Sales</h1><p>Up <b>twelve</b> per cent</p>"
        "<table><tr><td>Q3</td><td>1,299</td></tr></table><template>nothing</template></body></html>"
    )

    assert documents.text_of(page.encode()) == "News & views\nSales\nUp twelve per cent\nQ3 1,299"


def test_a_page_says_itself_how_it_is_encoded() -> None:
    page = f"<html><head><meta charset=gbk></head><body><p>{CHINESE}</p></body></html>"

    assert documents.text_of(page.encode("gbk")) == CHINESE


def test_a_long_page_is_read_apart_and_says_the_same() -> None:
    page = b"<html><body>" + b"<p>one line of it</p>" * 2_000

    assert documents.text_of(page) == "\n".join(["one line of it"] * 2_000)


def test_the_pages_of_a_pdf_are_read_in_order() -> None:
    assert documents.text_of(pdf("first page", "second page"), "text/plain") == "first page\n\nsecond page"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"<html><script>only()</script></html>", "empty"),
        (b"PK\x03\x04 a docx", "unsupported"),
        (b"\x89PNG\r\n\x1a\n", "unsupported"),
        (bytes(range(256)) * 4, "unsupported"),
        (b"x" * (documents.TEXT_LIMIT + 1), "too_long"),
        (b"x" * (documents.BYTES_LIMIT + 1), "too_large"),
        (b"%PDF-1.7 and then nothing", "unreadable"),
        (pdf("", ""), "no_text"),
        (encrypted(pdf("a secret")), "encrypted"),
        (bomb(), "no_text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_why(data: bytes, code: str) -> None:
    with pytest.raises(Unreadable) as refused:
        documents.text_of(data)

    assert refused.value.code == code
    assert str(refused.value).startswith(("is ", "has ", "unpacks ", "takes ", "could "))


def test_a_page_that_keeps_the_parser_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SECONDS", 2.0)
    page = b"<html>" + b"a<" * 150_000  # which the parser takes half a minute over

    with pytest.raises(Unreadable) as refused:
        documents.text_of(page)

    assert refused.value.code == "too_slow"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["", "text/html", "text/plain; charset=utf-16", "nonsense;;="]))
def test_any_bytes_give_text_that_can_be_stored_or_a_reason(data: bytes, content_type: str) -> None:
    try:
        text = documents.text_of(data, content_type)
    except Unreadable:
        return

    assert "\0" not in text
    assert text.encode()


# Cutting and grouping


@pytest.mark.parametrize(
    "text",
    [
        "One sentence. Another one follows it!\n\n" * 3_000,
        "x" * 200_000,
        "汉" * 60_000,
        "一二三四五。The quick brown fox.\n" * 3_000,
        "👨‍👩‍👧‍👦 é\u0301 " * 10_000,
    ],
    ids=["sentences", "no pause", "Han", "mixed", "marks"],
)
def test_a_long_document_is_cut_into_parts_that_fit_and_loses_nothing(text: str) -> None:
    parts = chunks.cut(text, 1_000)

    assert max(map(tokens, parts)) <= 1_000
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert len(parts) <= 1.5 * tokens(text) / 1_000 + 1


def test_a_document_that_fits_is_not_touched() -> None:
    assert chunks.cut("  as it is  ", 100) == ["  as it is  "]


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=60))
def test_answers_are_grouped_in_order_and_get_fewer(sizes: list[int]) -> None:
    texts = [f"{n}:" + "x" * size for n, size in enumerate(sizes)]

    groups = chunks.grouped(texts, 1_000)

    assert [text for group in groups for text in group] == texts
    assert len(groups) <= (len(texts) + 1) // 2
    assert all(len(group) <= 2 or sum(map(tokens, group)) <= 1_000 for group in groups)
