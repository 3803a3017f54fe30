"""Bytes → text in the encoding that they have; or None, since no decoder that never fails is used.

A wrong encoding often decodes without an error: Korean bytes are Chinese characters in GB 18030, any bytes are letters
in cp1252. So what a decoder gives is judged:

- `implausible` holds for every text, also for what a PDF gave: damage, and characters that nobody writes.
- Of the East Asian encodings that one is taken which gives the most everyday characters. In real text they are about
  half of all or more, in a wrong encoding mostly a quarter at most (EUC-JP as GB 18030 keeps its kana: more).
- Of the others charset-normalizer chooses, by the letters of each language. Where it sees two as good, none is taken.

A label (of a content type, of a page) decides only between encodings that are as good.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from functools import cache
from unicodedata import category, name

from charset_normalizer import from_bytes

_SAMPLE = 65_536  # bytes that tell an encoding
_WINDOW = 4_000  # characters looked at, each tenth of a text
_DAMAGE = 0.05  # of the characters may be damaged, and of those beyond ASCII twice as many
_RARE = 0.2  # of the Han and Hangul may be rare, in names, chemistry or Cantonese more,
_SELDOM = 0.25  # unless of the characters beyond ASCII so few are everyday ones; read wrongly, a sixth is at most
_MIXED = 0.3  # of the words beyond ASCII may have letters of two scripts
_LABEL = 0.05  # by so much less everyday is what is read as the label says
_EVERYDAY = 0.35  # of the characters beyond ASCII, in an East Asian encoding that is taken
_AS_GOOD = (0.08, 0.1)  # so much less chaos, or more coherence, of charset-normalizer's measures is no difference
_STRAY = 0.002  # of the bytes may be beyond ASCII in what is read as ASCII with marks

# As browsers read them: the WHATWG's Encoding Standard. By the names that Python gives them.
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
# Not all that Python knows: the time that some take grows with the square.
_KNOWN = re.compile(
    r"ascii|utf-(8|16|32)(-[bl]e|-sig)?|cp\d+|iso8859-\d+|gb(2312|k|18030)|hz|big5(hkscs)?|shift_jis\w*|euc_\w+|"
    r"iso2022_\w+|koi8-[rtu]|tis-620|johab|mac-\w+"
)
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, which it begins with
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
_SIGN_IN_WORD = re.compile(r"[a-zß-ÿ][¿¡§©®°²³½¼·ªº£€][a-zß-ÿ]")
_TERMINAL = frozenset("\t\n\r\f\x07\x08\x1b\x85")  # control characters that texts and logs do have


def known(label: str) -> str | None:
    """The encoding that a label means, as browsers read it; None: none that we know."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    return _AS_BROWSERS.get(name, name) if _KNOWN.fullmatch(name) else None


def decoded(data: bytes, declared: str | None = None) -> str | None:
    """The text of plain bytes; None where no encoding gives any. `declared` is what `known` made of a label.

    What is damaged in it is a U+FFFD; a character that the end cuts is left out.
    """
    return next(_readings(data, declared), None)


def implausible(text: str) -> str | None:
    """Why it is no text that a person wrote, as the rest of a sentence; None: it may be."""
    looked_at = _windows(text)
    if _damaged(looked_at) > _DAMAGE * len(looked_at):
        return "is damaged, or no text: too many of its characters are none"
    east = [sign for sign in looked_at if _is_east(sign)]
    rare = sum(1 for sign in east if not _is_usual(sign))
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
        yield from _kept(data, marked)
        return
    if b"\0" in data[:_SAMPLE]:
        yield from (text for encoding in _wide(data[:_SAMPLE]) for text in _kept(data, encoding))
        return
    if b"\x1b$" in data[:_SAMPLE] or declared == "hz":
        yield from _escaped(data, declared)
        return
    yield from _utf8(data)
    yield from _east(data, declared)
    yield from _others(data, declared)
    if sum(byte > 0x7F for byte in data[:_SAMPLE]) <= _STRAY * len(data[:_SAMPLE]):
        yield from _kept(data, "ascii")


def _kept(data: bytes, encoding: str) -> Iterator[str]:
    """The text in that encoding, if it is plausible."""
    try:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(data)
    except (UnicodeError, LookupError):
        return
    if text and implausible(text) is None:
        yield text


def _utf8(data: bytes) -> Iterator[str]:
    """As UTF-8, where what does not fit is little beside what does: letters of cp1252 fit nowhere."""
    for text in _kept(data, "utf-8"):
        if "\ufffd" not in text or text.count("\ufffd") <= 2 * _DAMAGE * sum(sign > "\x7f" for sign in text):
            yield text


def _wide(sample: bytes) -> Iterator[str]:
    """UTF-16 without a mark: the zeros of its plain letters are all on one side."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 20 * even:
        yield "utf-16-le"
    if even > 20 * odd:
        yield "utf-16-be"


def _escaped(data: bytes, declared: str | None) -> Iterator[str]:
    """As mail from Japan or Korea, or HZ if it is said to be: ASCII to all others, so nothing may be damaged in it."""
    encodings = ("hz",) if declared == "hz" else ("iso2022_jp", "iso2022_kr")
    yield from (text for encoding in encodings for text in _kept(data, encoding) if "\ufffd" not in text)


def _east(data: bytes, declared: str | None) -> Iterator[str]:
    """As the encoding whose text has the most everyday characters, and enough of them."""
    sample = data[:_SAMPLE]
    shares = {encoding: _everyday(sample.decode(encoding, "replace")) for encoding in _EAST}
    best = max(shares, key=lambda encoding: shares[encoding] + _LABEL * (encoding == declared))
    if shares[best] >= _EVERYDAY:
        yield from _kept(data, best)


def _others(data: bytes, declared: str | None) -> Iterator[str]:
    """As the encoding with an alphabet that charset-normalizer finds, if none gives another text that is as good.

    Latin letters that all Western languages use are the exception: there the one for them is taken.
    """
    tried = [*_OTHERS, declared] if declared and declared not in _EAST else _OTHERS
    found = list(from_bytes(data[:_SAMPLE], cp_isolation=tried))
    equals = [each for each in found if each.chaos <= found[0].chaos + _AS_GOOD[0]]
    equals = [each for each in equals if each.coherence >= max(each.coherence for each in equals) - _AS_GOOD[1]]
    texts = {name: str(each) for each in equals for name in [each.encoding, *each.could_be_from_charset]}
    if "cp1252" in texts and _is_western(texts["cp1252"]):
        yield from _kept(data, "cp1252")
    elif declared and declared.replace("-", "_") in texts:
        yield from _kept(data, declared)
    elif len(set(texts.values())) == 1:
        yield from _kept(data, equals[0].encoding)


def _is_western(text: str) -> bool:
    return all(sign <= "\x7f" or sign in _WESTERN for sign in text) and not _SIGN_IN_WORD.search(text)


def _everyday(text: str) -> float:
    """The share of everyday characters among those beyond ASCII."""
    signs = [sign for sign in text if sign > "\x7f" and not sign.isspace()]
    return sum(sign in _COMMON for sign in signs) / max(1, len(signs))


def _windows(text: str) -> str:
    """All of a short text; of a long one ten windows from its beginning to its end, and no less of each."""
    if len(text) <= 10 * _WINDOW:
        return text
    step = (len(text) - _WINDOW) // 9
    return "".join(text[at : at + _WINDOW] for at in range(0, 9 * step + 1, step))


def _damaged(text: str) -> int:
    """How many characters are marks of damage, controls, of private use or none at all.

    Bullets and arrows of Office's symbol fonts are not counted: they are of private use, and usual.
    """
    odd = (sign for sign in text if not sign.isprintable() or sign == "\ufffd")
    return sum(1 for sign in odd if _is_damage(sign))


def _is_damage(sign: str) -> bool:
    if sign == "\ufffd":
        return True
    if "\uf000" <= sign <= "\uf0ff" or sign in _TERMINAL:
        return False
    return category(sign) in ("Cc", "Co", "Cn", "Cs")


def _is_east(sign: str) -> bool:
    return "\u3400" <= sign <= "\u9fff" or "\uac00" <= sign <= "\ud7a3" or sign >= "\U00020000"


@cache
def _script(sign: str) -> str | None:
    """The script of a letter that may not stand in a word with letters of another; None of all others.

    East Asian texts have no blanks between words, and Latin letters anywhere.
    """
    first = name(sign, "").partition(" ")[0] if sign.isalpha() and not sign.isascii() else ""
    return first if first and first not in _ANYWHERE else None


@cache
def _is_usual(sign: str) -> bool:
    """Whether it is of the first level of GB 2312, Big5 or JIS X 0208, or of the Hangul of KS X 1001."""
    return any(first <= sign.encode(encoding, "ignore") <= last for encoding, first, last in _LEVELS)


_ANYWHERE = frozenset(
    [
        "CJK",
        "HIRAGANA",
        "KATAKANA",
        "KATAKANA-HIRAGANA",
        "HANGUL",
        "HALFWIDTH",
        "FULLWIDTH",
        "IDEOGRAPHIC",
        "MATHEMATICAL",
        "MODIFIER",
        "SUPERSCRIPT",
        "SUBSCRIPT",
        "MASCULINE",
        "FEMININE",
        "MICRO",
        "DOUBLE-STRUCK",
        "SCRIPT",
        "BLACK-LETTER",
        "OHM",
        "KELVIN",
        "ANGSTROM",
        "INFORMATION",
        "PLANCK",
        "EULER",
        "VULGAR",
    ]
)
_LEVELS = (
    ("gb2312", b"\xb0\xa1", b"\xd7\xf9"),
    ("big5", b"\xa4\x40", b"\xc6\x7e"),
    ("shift_jis", b"\x88\x9f", b"\x98\x72"),
    ("euc_kr", b"\xb0\xa1", b"\xc8\xfe"),
)
