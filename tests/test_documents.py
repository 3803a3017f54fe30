"""Documents: text out of whatever people store, and a clear reason where there is none."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from worker.kinds import answers, reading
from worker.kinds.answers import Unfitting
from worker.kinds.reading import decoding, extract
from worker.kinds.summary import documents, prompts
from worker.kinds.summary.documents import Unreadable
from worker.kinds.text import tokens

CHINESE = "第三季度的销售额上升了百分之十二。" * 20
TEXTS = {
    "gb18030": "水庫在夏天要放水，鎮上的人都知道這件事。管理員每天記錄水位，並把數字寫在黑板上。\n",
    "gbk": "水库在夏天要放水，镇上的人都知道这件事。管理员每天记录水位，并把数字写在黑板上。\n",
    "big5": "水庫在夏天要放水，鎮上的人都知道這件事。管理員每天記錄水位，並把數字寫在黑板上。\n",
    "shift_jis": "貯水池は夏に放水します。町の人は皆知っています。管理人は毎日水位を記録します。\n",
    "euc_jp": "貯水池は夏に放水します。町の人は皆知っています。管理人は毎日水位を記録します。\n",
    "iso2022_jp": "貯水池は夏に放水します。町の人は皆知っています。管理人は毎日水位を記録します。\n",
    "euc_kr": "저수지는 여름에 물을 내보낸다. 마을 사람들은 모두 이 일을 알고 있다.\n",
    "cp1251": "Водохранилище летом сбрасывает воду. Все жители города знают об этом.\n",
    "koi8_r": "Водохранилище летом сбрасывает воду. Все жители города знают об этом.\n",
    "cp1252": "Le réservoir lâche de l’eau en été : tout le monde le sait déjà, même à Müllheim.\n",
    "utf-8": "水库在夏天要放水。Les élèves l’ont vu. 저수지는 여름에 물을 내보낸다.\n",
    "utf-16": "水库在夏天要放水。Les élèves l’ont vu. 저수지는 여름에 물을 내보낸다.\n",
}
# What a decoder that never fails would call damaged, and people do write.
UNUSUAL = [
    "├── src\n│   └── main.py\n" * 5,
    "✅ done 🚀\n❌ failed 👨‍👩‍👧‍👦\n" * 3,
    "∑ᵢ xᵢ² ≤ ∫₀^∞ f(x) dx, ∀ε>0 ∃δ",
    "\uf0b7 one\n\uf0b7 two\n• three → four",
    "ÅÄÖ åäö Ñandú",
    "ｶﾀｶﾅ ﾃｽﾄ",
    "नमस्ते दुनिया, यह एक परीक्षण है।",
    "한글과 漢字를 混用한 문장, 简体 und 繁體 gemischt",
    "\x1b[32mINFO\x1b[0m ready\n" * 9,
    "佢哋話今日嘅水喉壞咗，唔知點算好。我哋喺度等緊師傅嚟整，佢話要聽日先至得閒。",
    "张翀、李祎、王喆、赵昊、刘玥、陈彧、杨旻、黄婧、周玮、吴玟、徐琰、孙昱、马骁、朱珺、胡煜",
    "吡嗪酰胺片、头孢呋辛酯片、嘧啶、嘌呤、苯丙氨酸、羧酸、醛、酮、烯烃、炔烃、吡啶、吲哚、噻吩",
]


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
        (b"PK\x03\x04 a docx", "unreadable"),
        (b"\xd0\xcf\x11\xe0 a doc", "unsupported"),
        (b"\x89PNG\r\n\x1a\n", "unsupported"),
        (bytes(range(256)) * 4, "unsupported"),
        (b"x" * (documents.TEXT_LIMIT + 1), "too_long"),
        (b"x" * (documents.BYTES_LIMIT + 1), "too_large"),
        (b"%PDF-1.7 and then nothing", "unreadable"),
        (pdf("", ""), "no_text"),
        (encrypted(pdf("a secret")), "encrypted"),
        (bomb, "no_text"),  # made by its test: each process that collects would take a second to
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_why(data: bytes | Callable[[], bytes], code: str) -> None:
    content = data if isinstance(data, bytes) else data()

    with pytest.raises(Unreadable) as refused:
        documents.text_of(content)

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


# Encodings, and what is judged before it is paid for


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_is_read_in_its_own_encoding_without_being_told(encoding: str) -> None:
    text = TEXTS[encoding] * 3

    assert documents.text_of(text.encode(encoding)) == text.strip()


def test_a_latin_text_with_few_letters_beyond_ascii_is_no_damaged_utf8() -> None:
    text = "Der Stausee lässt im Sommer Wasser ab; alle Bürger der Stadt wissen es. The rest is in plain words."

    assert documents.text_of(text.encode("cp1252")) == text


def test_bytes_that_are_rare_chinese_are_no_chinese() -> None:
    """Thai is valid in EUC-KR and in GB 18030, as characters of which few are everyday ones."""
    thai = "อ่างเก็บน้ำปล่อยน้ำในฤดูร้อน ชาวเมืองทุกคนรู้เรื่องนี้ ผู้ดูแลจดระดับน้ำทุกวัน"

    assert documents.text_of(thai.encode("cp874")) == thai


@pytest.mark.parametrize(
    ("label", "encoding"),
    [("gb2312", "gb18030"), ("ISO-8859-1", "cp1252"), ("Shift_JIS", "cp932"), ("euc-kr", "cp949"), ("punycode", None)],
)
def test_a_label_means_what_browsers_take_it_for(label: str, encoding: str | None) -> None:
    assert decoding.known(label) == encoding


def test_a_traditional_text_in_the_encoding_of_taiwan_is_read() -> None:
    assert documents.text_of("臺北市政府今天宣布，將於下個月起調整公車票價。".encode("big5")).startswith("臺北市")


@pytest.mark.parametrize("label", ["gb2312", "big5", "shift_jis", "euc-kr", "windows-1251", "utf-16", "koi8-r"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_a_wrong_label_makes_no_rubbish(encoding: str, label: str) -> None:
    text = TEXTS[encoding] * 3

    assert said(text.encode(encoding), f"text/plain; charset={label}") in (None, text.strip())


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_bad_byte_or_a_cut_character_leaves_the_text_or_is_an_error(encoding: str) -> None:
    text = TEXTS[encoding] * 20
    data = text.encode(encoding)

    for at in range(0, len(data), 61):
        assert likeness(said(data[:at] + b"\xff" + data[at + 1 :]), text) > 0.9, at
    for end in range(len(data) - 4, len(data)):
        assert likeness(said(data[:end]), text) > 0.9, end


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_file_of_which_half_was_never_written_is_an_error(encoding: str) -> None:
    data = (TEXTS[encoding] * 20).encode(encoding)

    for half in (data[: len(data) // 2] + bytes(len(data) // 2), bytes(len(data) // 2) + data[len(data) // 2 :]):
        assert said(half) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_mutation_of_a_text_gives_rubbish(draw: st.DataObject) -> None:
    encoding = draw.draw(st.sampled_from(["gb18030", "big5", "shift_jis", "euc_kr", "euc_jp", "utf-8"]))
    text = TEXTS[encoding] * 10
    data = bytearray(text.encode(encoding))
    for at in draw.draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[at] = draw.draw(st.integers(0, 255))

    assert likeness(said(bytes(data)), text) > 0.85


def test_what_was_damaged_in_a_text_is_said() -> None:
    found = documents.read((TEXTS["gbk"] * 5).encode() + b"\xff plain words")

    assert found.warning == "1 of its characters could not be read"
    assert "\ufffd plain words" in found.text


@pytest.mark.parametrize("text", UNUSUAL)
def test_what_people_write_is_plausible_however_unusual(text: str) -> None:
    assert decoding.implausible(text) is None
    assert documents.text_of(text.encode())


@pytest.mark.parametrize("label", ["gb2312", "GB2312", "gbk", "x-gbk"])
def test_a_page_that_says_gb2312_is_read_as_browsers_do(label: str) -> None:
    """The character 镕 is in GBK alone."""
    page = f'<html><meta http-equiv="Content-Type" content="text/html; charset={label}"><p>朱镕基说：{CHINESE}</p>'

    assert documents.text_of(page.encode("gbk")) == f"朱镕基说：{CHINESE}"
    assert documents.text_of(page.encode("gbk"), "text/html; charset=gb2312") == f"朱镕基说：{CHINESE}"


def said(data: bytes, content_type: str = "") -> str | None:
    """The document's text; None: it is an error."""
    try:
        return documents.text_of(data, content_type)
    except Unreadable:
        return None


def likeness(found: str | None, text: str) -> float:
    """The share of the found characters that the text has; an error has nothing that is wrong."""
    usual = set(text)
    return 1.0 if found is None else sum(sign in usual for sign in found) / max(1, len(found))


# PDFs that are read in part


@pytest.mark.parametrize("cmap", ["GBKp-EUC-H", "UniGB-UTF8-H", "GBK-EUC-H", "UniGB-UTF16-H"])
def test_a_pdf_in_a_character_map_that_is_not_known_is_an_error(cmap: str) -> None:
    text = "会议纪要：一号闸门本周检修，决定周五下午两点停水三小时。"
    encoding = {"GBK": "gbk", "Uni": "utf-8" if "UTF8" in cmap else "utf-16-be"}[cmap[:3]]

    assert said(mapped(text.encode(encoding), cmap)) == (None if cmap in ("GBKp-EUC-H", "UniGB-UTF8-H") else text)


def test_the_pages_of_a_pdf_without_text_are_counted() -> None:
    found = documents.read(pdf("The water is off on Friday.", *[""] * 9))

    assert (found.text, found.warning) == ("The water is off on Friday.", "9 of 10 pages hold no text")
    assert documents.read(pdf("first page", "second page")).warning is None


def test_what_a_scanner_prints_on_each_page_is_no_text() -> None:
    with pytest.raises(Unreadable) as refused:
        documents.read(pdf(*["Scanned by a scanner"] * 5))

    assert refused.value.code == "no_text"


def test_a_page_of_rubbish_is_left_out_and_said() -> None:
    found = documents._of_pages(["The water is off on Friday.", "\x01\x02\x03\x04\x05 \x06\x07"])

    assert (found.text, found.warning) == ("The water is off on Friday.", "1 of 2 pages hold no text that can be read")


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256-R5", "AES-256"])
def test_a_pdf_that_opens_without_a_password_is_read(algorithm: str) -> None:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf("for all to read"))))
    writer.encrypt("", "the owner's", algorithm=algorithm)
    written = BytesIO()
    writer.write(written)

    assert documents.text_of(written.getvalue()) == "for all to read"


def mapped(codes: bytes, cmap: str) -> bytes:
    """A PDF with one line, whose font maps codes to characters so."""
    shown = b"BT /F1 12 Tf 40 700 Td <%s> Tj ET" % codes.hex().encode()
    info = "/CIDSystemInfo<</Registry(Adobe)/Ordering(GB1)/Supplement 4>>/DW 1000"
    return _numbered(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F1 5 0 R>>>>/Contents 4 0 R>>",
            b"<</Length %d>>stream\n%s\nendstream" % (len(shown), shown),
            f"<</Type/Font/Subtype/Type0/BaseFont/Song/Encoding/{cmap}/DescendantFonts[6 0 R]>>".encode(),
            f"<</Type/Font/Subtype/CIDFontType0/BaseFont/Song{info}>>".encode(),
        ]
    )


# Office documents and mail

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
A = "http://schemas.openxmlformats.org/drawingml/2006/main"


def zipped(parts: dict[str, str | bytes]) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()


def docx(inside: str, before: str = "") -> bytes:
    return zipped({"word/document.xml": f'{before}<w:document xmlns:w="{W}"><w:body>{inside}</w:body></w:document>'})


def pptx(*slides: str) -> bytes:
    parts: dict[str, str | bytes] = {"ppt/presentation.xml": "<p/>"}
    for n, text in reversed(list(enumerate(slides, 1))):
        parts[f"ppt/slides/slide{n}.xml"] = f'<s xmlns:a="{A}"><a:p><a:r><a:t>{text}</a:t></a:r></a:p></s>'
    return zipped(parts)


def xlsx(*rows: list[Any]) -> bytes:
    book, made = openpyxl.Workbook(), BytesIO()
    for row in rows:
        book.active.append(row)
    book.save(made)
    return made.getvalue()


def mail(text: str, attached: str | None = None, **said: str) -> bytes:
    made = EmailMessage()
    made["From"], made["Subject"] = "a@example.com", "停水通知"
    made.set_content(text, **said)
    if attached:
        made.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename=attached)
    return made.as_bytes()


def test_office_documents_are_read() -> None:
    words = docx("<w:p><w:r><w:t>One</w:t></w:r><w:r><w:tab/><w:t>line</w:t></w:r></w:p><w:p><w:t>水位</w:t></w:p>")

    assert documents.text_of(words) == "One\tline\n水位"
    assert documents.text_of(pptx(*(f"slide {n}" for n in range(1, 12)))).split("\n")[8:] == [
        "slide 9",
        "slide 10",
        "slide 11",
    ]
    assert (
        documents.text_of(xlsx(["日期", "level"], [None, None], ["6月1日", 12.5])) == "Sheet\n日期\tlevel\n6月1日\t12.5"
    )


@pytest.mark.parametrize("charset", ["utf-8", "gbk", "big5"])
def test_mail_is_read_as_its_reader_sees_it(charset: str) -> None:
    text = TEXTS["gbk" if charset == "gbk" else "big5"]
    found = documents.read(mail(text, charset=charset, cte="base64"))

    assert found == documents.Reading(f"From: a@example.com\nSubject: 停水通知\n\n{text.strip()}")


def test_what_is_attached_to_mail_is_named_and_not_read() -> None:
    assert documents.read(mail("See the file.", "plan.pdf")).warning == "attachments are not read: plan.pdf"


def test_mail_in_html_alone_is_read() -> None:
    found = documents.text_of(mail("<html><p>Up <b>twelve</b></p></html>", subtype="html"), "message/rfc822")

    assert found.endswith("\n\nUp twelve")


def test_mail_within_mail_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head was read by a program of its own, until the stack ended."""
    forms: list[str] = []
    run = reading.run
    monkeypatch.setattr(reading, "run", lambda form, *rest: forms.append(form) or run(form, *rest))

    found = documents.text_of(b"From: a\nMIME-Version: 1.0\n\n" * 400 + b"Up twelve.\n")

    assert forms == ["mail"]
    assert found.endswith("Up twelve.")


LAUGHS = (
    "<!DOCTYPE w:document [<!ENTITY a 'ha'>"
    + "".join(f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9))
    + "]>"
)


@pytest.mark.parametrize(
    "data",
    [
        docx("<w:p><w:t>&j;</w:t></w:p>", LAUGHS),
        docx("<w:p><w:t>&x;</w:t></w:p>", '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
        docx("<w:p>" * 100_000),
        zipped({"xl/workbook.xml": "<workbook/>"}),
        lambda: zipped({f"n{n}": b"" for n in range(20_001)}),
        zipped({"a.txt": b"no Office document"}),
        docx("<w:p><w:t>cut</w:t></w:p>")[:-30],
        b"MIME-Version: 1.0\nContent-Type: message/rfc822\n\n" * 5_000,
        b"From: a\nMIME-Version: 1.0\n"
        + b"".join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (n, n) for n in range(3_000)),
    ],
    ids=["entities", "a file of ours", "depth", "no sheets", "entries", "zip", "cut", "mails", "parts"],
)
def test_an_office_document_or_mail_made_to_harm_ends_in_time(
    data: bytes | Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "SECONDS", 20.0)

    found = said(data if isinstance(data, bytes) else data())

    assert found is None or ("root:" not in found and len(found) < 10_000)


def test_a_sheet_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "TEXT_LIMIT", 1_000)

    with pytest.raises(Unreadable) as refused:
        documents.text_of(xlsx(*([n, "words of a row"] for n in range(200))))

    assert refused.value.code == "too_long"


# Parsers are kept apart


def test_no_page_is_parsed_in_our_own_process() -> None:
    """20 kB of "<a " take the parser seconds, and a thread cannot be stopped."""
    program = (
        "import sys; from worker.kinds.summary import documents; documents.text_of(b'<html><p>few words</p>');"
        "sys.exit(any(name in sys.modules for name in ('bs4', 'pypdf', 'lxml', 'openpyxl', 'json_repair')))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_a_parser_complains_of_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "loud.py"
    program.write_text("import sys; sys.stdin.read(); sys.stderr.write('x' * 5_000_000); print('{}')")
    monkeypatch.setattr(reading, "_PROGRAM", str(program))

    assert reading.run("pdf", b"", 1, 10.0) == {}  # a pipe that nobody reads would have filled up


def test_an_archive_that_says_it_unpacks_to_more_than_memory_is_not_unpacked() -> None:
    with pytest.raises(Unreadable) as refused:
        documents.read(zipped({"word/document.xml": "<p><t>words</t></p>", "word/media/a.bin": bytes(450 << 20)}))

    assert refused.value.code == "too_large"


def test_a_parser_that_says_too_much_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ANSWER", 1_000)

    with pytest.raises(reading.Exhausted):
        reading.run("html", b"<p>words</p>" * 1_000, 10**6, 20.0)


def test_a_parser_writes_no_file_and_is_the_first_to_go_where_memory_runs_out(tmp_path: Path) -> None:
    program = f"import runpy; runpy.run_path({extract.__file__!r})['_bound']();"
    program += f"print(open('/proc/self/oom_score_adj').read()); open({str(tmp_path / 'x')!r}, 'wb', 0).write(b'x')"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert done.stdout.strip() == "1000"
    assert "File too large" in done.stderr


def test_json_that_takes_long_to_mend_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_SECONDS", 1.5)
    began = time.monotonic()

    with pytest.raises(Unfitting):
        answers.parsed_json('{"a":' * 8_000 + '"' * 40_000 + "[" * 8_000, None)

    assert time.monotonic() - began < 15


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
    parts = prompts.cut(text, 1_000)

    assert max(map(tokens, parts)) <= 1_000
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert len(parts) <= 1.5 * tokens(text) / 1_000 + 1


def test_a_document_that_fits_is_not_touched() -> None:
    assert prompts.cut("  as it is  ", 100) == ["  as it is  "]


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=60))
def test_answers_are_grouped_in_order_and_get_fewer(sizes: list[int]) -> None:
    texts = [f"{n}:" + "x" * size for n, size in enumerate(sizes)]

    groups = prompts.grouped(texts, 1_000)

    assert [text for group in groups for text in group] == texts
    assert len(groups) <= (len(texts) + 1) // 2
    assert all(len(group) <= 2 or sum(map(tokens, group)) <= 1_000 for group in groups)
