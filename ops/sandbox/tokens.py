"""Tokens, counted plainly: a Han character is one, and every four bytes of anything else are one."""

import re

BYTES = 4  # of a token, Han characters apart
HAN = re.compile(
    r"[\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def count(text: str) -> int:
    """Return how many tokens a text has."""
    rest, characters = HAN.subn("", text)
    return characters + -(-len(rest.encode("utf-8", "replace")) // BYTES)


def cut(text: str, limit: int) -> str:
    """Return the longest beginning of a text that has `limit` tokens at most."""
    shortest, longest = 0, min(len(text), limit * BYTES)
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if count(text[:middle]) <= limit:
            shortest = middle
        else:
            longest = middle - 1
    return text[:shortest]
