"""Bytes → text in the encoding that they have; None where no encoding gives a text that a person could have written.

A wrong encoding often decodes without an error: Korean bytes are Chinese characters in GB 18030, any bytes are letters
in cp1252. So the decoded text is judged:

- `implausible` looks at every text, also at that of a PDF: for damage, and for characters that nobody writes.
- Among the East Asian encodings the one with the most everyday characters is taken. They are about half of a real text
  or more, in a wrong encoding mostly a quarter at most (more for EUC-JP read as GB 18030, which keeps its kana).
- Among the others charset-normalizer chooses, by the letters of each language. Of two that are equally good none is
  taken.

A label (of a content type or a page) decides only between encodings that are equally good.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from functools import cache
from unicodedata import category, name

from charset_normalizer import from_bytes

_SAMPLE = 65_536  # bytes that are enough to find the encoding
_WINDOW = 4_000  # characters judged in each tenth of a text
_DAMAGE = 0.05  # of the characters may be damaged, and twice as many of those beyond ASCII
_RARE = 0.2  # of the Han and Hangul may be rare; more in names, chemistry or Cantonese,
_SELDOM = 0.25  # where at least this share beyond ASCII are everyday ones; in a wrong encoding a sixth at most is
_MIXED = 0.3  # of the words beyond ASCII may have letters of two scripts
_LABEL = 0.05  # added to the share of everyday characters of the encoding that the label names
_EVERYDAY = 0.35  # of the characters beyond ASCII, in an East Asian encoding that is taken
_AS_GOOD = (0.08, 0.1)  # charset-normalizer's chaos and coherence: differences up to these count as equal
_STRAY = 0.002  # of the bytes may be beyond ASCII in what is read as ASCII with marks

# As browsers read them (the WHATWG's Encoding Standard), by Python's names.
_AS_BROWSERS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
# Not all that Python has: some decoders take quadratic time.
_KNOWN = re.compile(
    r"ascii|utf-(8|16|32)(-[bl]e|-sig)?|cp\d+|iso8859-\d+|gb(2312|k|18030)|hz|big5(hkscs)?|shift_jis\w*|euc_\w+|"
    r"iso2022_\w+|koi8-[rtu]|tis-620|johab|mac-\w+"
)
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EAST = ("gb18030", "big5hkscs", "cp932", "cp949", "euc_jp")
_OTHERS = ["cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp874", "cp1257"]
_OTHERS += ["iso8859_2"]

# The most frequent ones: Chinese in both scripts, Japanese, Korean.
_COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事"
    "成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此"
    "已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代"
    "内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安"
    "少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光"
    "放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运這個們"
    "來為國說時會對發後裡過學經麼當沒動還進樣開從實無與長機業將兩間問關點應戰頭體見產話門員條題別變總電數報結務場計統區隊"
    "決馬書聽達強難權設記類據邊張該萬覺領確傳師觀讓識帶導爭運氣處義認幾論兒東給號円校売議火木土曜気県町村駅聞読食飲買車店"
    "族友朝昼夜春夏秋冬，。、：；！？「」『』（）・ー"
    "이다에의는로하을가고지서한은기으년대사시를리도인스일어나자것과들해수정그제아부보라게전만있주여았며습니까요원상공장없때말"
    "중오모람두세조성관면안동생무문경학국않음했던된할적개위구회소신유영실더우러였물마당용진입방계내분발출치결후트연재선울터건"
    "화설간명단월달야식민역업체와거같네데저히든려미비바각통표심교금산본력료법강행길집손눈천날매번점품름르올"
) | frozenset(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FB)]))
_WESTERN = frozenset("àáâãäåæçèéêëìíîïñòóôõöøùúûüÿßœÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŸŒ¿¡«»“”„‘’‹›–—…•€£§©®™°²³½¼·ªº\u00a0")
_SYMBOL_IN_WORD = re.compile(r"[a-zß-ÿ][¿¡§©®°²³½¼·ªº£€][a-zß-ÿ]")
_TERMINAL = frozenset("\t\n\r\f\x07\x08\x1b\x85")  # control characters that texts and logs do have


def known(label: str) -> str | None:
    """The encoding that a label means to browsers; None: we know none by that label."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    return _AS_BROWSERS.get(name, name) if _KNOWN.fullmatch(name) else None


def decoded(data: bytes, declared: str | None = None) -> str | None:
    """The text of plain bytes; None where no encoding fits. `declared` is what `known` made of a label.

    Damaged characters are U+FFFD; a character that is cut off at the end is left out.
    """
    return next(_readings(data, declared), None)


def implausible(text: str) -> str | None:
    """Why no person can have written it, as the rest of a sentence; None: it may be a text."""
    looked_at = _windows(text)
    if _damaged(looked_at) > _DAMAGE * len(looked_at):
        return "is damaged, or no text: too many of its characters are none"
    east = [char for char in looked_at if _is_east(char)]
    rare = sum(1 for char in east if not _is_usual(char))
    if rare > 3 and rare > _RARE * len(east) and _everyday(looked_at) < _SELDOM:
        return "has characters that nobody writes, as if read in a wrong encoding"
    words = [] if looked_at.isascii() else [word for word in looked_at.split() if not word.isascii()]
    mixed = sum(1 for word in words if len(set(map(_script, word)) - {None}) > 1)
    if mixed > 3 and mixed > _MIXED * len(words):
        return "has letters of several scripts in a word, as if read in a wrong encoding"
    return None


def _readings(data: bytes, declared: str | None) -> Iterator[str]:
    """The plausible texts, the likeliest first."""
    marked = next((encoding for bom, encoding in _BOMS.items() if data.startswith(bom)), None)
    if marked:
        yield from _plausible(data, marked)
        return
    if b"\0" in data[:_SAMPLE]:
        yield from (text for encoding in _wide(data[:_SAMPLE]) for text in _plausible(data, encoding))
        return
    if b"\x1b$" in data[:_SAMPLE] or declared == "hz":
        yield from _escaped(data, declared)
        return
    yield from _utf8(data)
    yield from _east(data, declared)
    yield from _others(data, declared)
    if sum(byte > 0x7F for byte in data[:_SAMPLE]) <= _STRAY * len(data[:_SAMPLE]):
        yield from _plausible(data, "ascii")


def _plausible(data: bytes, encoding: str) -> Iterator[str]:
    """The text in that encoding, if it is plausible."""
    try:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(data)
    except (UnicodeError, LookupError):
        return
    if text and implausible(text) is None:
        yield text


def _utf8(data: bytes) -> Iterator[str]:
    """As UTF-8, if few characters are damaged: in a text of another encoding nearly all beyond ASCII are."""
    for text in _plausible(data, "utf-8"):
        if "\ufffd" not in text or text.count("\ufffd") <= 2 * _DAMAGE * sum(char > "\x7f" for char in text):
            yield text


def _wide(sample: bytes) -> Iterator[str]:
    """UTF-16 without a mark: the zero bytes of ASCII letters are all at even or all at odd places."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 20 * even:
        yield "utf-16-le"
    if even > 20 * odd:
        yield "utf-16-be"


def _escaped(data: bytes, declared: str | None) -> Iterator[str]:
    """As ISO 2022, or HZ if declared: both are ASCII to other decoders, so only undamaged text counts."""
    encodings = ("hz",) if declared == "hz" else ("iso2022_jp", "iso2022_kr")
    yield from (text for encoding in encodings for text in _plausible(data, encoding) if "\ufffd" not in text)


def _east(data: bytes, declared: str | None) -> Iterator[str]:
    """As the East Asian encoding whose text has the most everyday characters, if they are enough."""
    sample = data[:_SAMPLE]
    shares = {encoding: _everyday(sample.decode(encoding, "replace")) for encoding in _EAST}
    best = max(shares, key=lambda encoding: shares[encoding] + _LABEL * (encoding == declared))
    if shares[best] >= _EVERYDAY:
        yield from _plausible(data, best)


def _others(data: bytes, declared: str | None) -> Iterator[str]:
    """As the encoding that charset-normalizer finds, if no other one gives a different text that is equally good.

    If all letters are those of Western languages, cp1252 is taken all the same.
    """
    tried = [*_OTHERS, declared] if declared and declared not in _EAST else _OTHERS
    found = list(from_bytes(data[:_SAMPLE], cp_isolation=tried))
    equals = [each for each in found if each.chaos <= found[0].chaos + _AS_GOOD[0]]
    equals = [each for each in equals if each.coherence >= max(each.coherence for each in equals) - _AS_GOOD[1]]
    texts = {name: str(each) for each in equals for name in [each.encoding, *each.could_be_from_charset]}
    if "cp1252" in texts and _is_western(texts["cp1252"]):
        yield from _plausible(data, "cp1252")
    elif declared and declared.replace("-", "_") in texts:
        yield from _plausible(data, declared)
    elif len(set(texts.values())) == 1:
        yield from _plausible(data, equals[0].encoding)


def _is_western(text: str) -> bool:
    return all(char <= "\x7f" or char in _WESTERN for char in text) and not _SYMBOL_IN_WORD.search(text)


def _everyday(text: str) -> float:
    """The share of everyday characters among those beyond ASCII."""
    chars = [char for char in text if char > "\x7f" and not char.isspace()]
    return sum(char in _COMMON for char in chars) / max(1, len(chars))


def _windows(text: str) -> str:
    """All of a short text; of a long one ten windows, from its beginning to its end."""
    if len(text) <= 10 * _WINDOW:
        return text
    step = (len(text) - _WINDOW) // 9
    return "".join(text[at : at + _WINDOW] for at in range(0, 9 * step + 1, step))


def _damaged(text: str) -> int:
    """How many characters are U+FFFD, controls, of private use or unassigned.

    Bullets and arrows of Office's symbol fonts are not counted: they are of private use, but common.
    """
    odd = (char for char in text if not char.isprintable() or char == "\ufffd")
    return sum(1 for char in odd if _is_damage(char))


def _is_damage(char: str) -> bool:
    if char == "\ufffd":
        return True
    if "\uf000" <= char <= "\uf0ff" or char in _TERMINAL:
        return False
    return category(char) in ("Cc", "Co", "Cn", "Cs")


def _is_east(char: str) -> bool:
    return "\u3400" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7a3" or char >= "\U00020000"


@cache
def _script(char: str) -> str | None:
    """The script of a letter that cannot be mixed with other scripts in a word; None for all other characters.

    East Asian texts have no blanks between words, and Latin letters anywhere.
    """
    first = name(char, "").partition(" ")[0] if char.isalpha() and not char.isascii() else ""
    return first if first and not _ANYWHERE.fullmatch(first) else None


@cache
def _is_usual(char: str) -> bool:
    """Whether it is of the first level of GB 2312, Big5 or JIS X 0208, or of the Hangul of KS X 1001."""
    return any(first <= char.encode(encoding, "ignore") <= last for encoding, first, last in _LEVELS)


_ANYWHERE = re.compile(
    "CJK|HIRAGANA|KATAKANA|KATAKANA-HIRAGANA|HANGUL|HALFWIDTH|FULLWIDTH|IDEOGRAPHIC|MATHEMATICAL|MODIFIER|SUPERSCRIPT|"
    "SUBSCRIPT|MASCULINE|FEMININE|MICRO|DOUBLE-STRUCK|SCRIPT|BLACK-LETTER|OHM|KELVIN|ANGSTROM|INFORMATION|PLANCK|EULER|"
    "VULGAR"
)
_LEVELS = (
    ("gb2312", b"\xb0\xa1", b"\xd7\xf9"),
    ("big5", b"\xa4\x40", b"\xc6\x7e"),
    ("shift_jis", b"\x88\x9f", b"\x98\x72"),
    ("euc_kr", b"\xb0\xa1", b"\xc8\xfe"),
)
