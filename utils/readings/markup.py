"""Text without what only dresses it: thought, tags, JSON, LaTeX, full-width characters, the marks of a text's end.

Knows: how models wrap an answer. Does not know what an answer is. What is wrapped as an answer (`\\boxed{7}`,
`<answer>7</answer>`, `{"answer": 7}`) becomes a line `Answer: 7`.
"""

from __future__ import annotations

import re

END = re.compile(r"</s>|<\|(?:im_end|endoftext|eot_id|end)\|>|<eos>|<end_of_turn>")
THOUGHT = re.compile(r".*</think>", flags=re.DOTALL)
TAG = re.compile(r"<(?i:answer)>(.*?)(?:</(?i:answer)>|$)", flags=re.DOTALL)
JSON_FIELD = re.compile(r"[\"'](?i:final_)?(?i:answer)[\"']\s*:\s*[\"']?([^\"'}\n]*)[\"']?\s*[,}]?")
FENCE = re.compile(r"^```\w*$", flags=re.MULTILINE)

BOX = re.compile(r"\\f?boxed\s*\{([^{}]*)\}?")
FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)(\d))")
POWER = re.compile(r"\^\{([^{}]*)\}")
WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
SIGNS = {
    "{,}": ",", r"\times": "×", r"\cdot": "·", r"\div": "÷", r"\approx": "≈", r"\%": "%", r"\$": "$", r"\left": "",
    r"\right": "", r"\quad": " ", r"\,": "", r"\!": "", r"\;": " ", r"\ ": " ", r"\(": " ", r"\)": " ", r"\[": " ",
    r"\]": " ",
}  # fmt: skip
SIGN = re.compile("|".join(re.escape(sign) for sign in SIGNS))

FULL_WIDTH = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **{ord(sign): ord("-") for sign in "−–‒"},
    **dict(zip(map(ord, "½¼¾⅓⅔"), (" 1/2", " 1/4", " 3/4", " 1/3", " 2/3"), strict=True)),
    ord("￥"): ord("¥"),
    ord("\u00a0"): ord(" "),
    ord("\u202f"): ord(" "),
}


def plain(text: str, *, is_free: bool) -> str:
    """`text` without its dress; full-width characters stay where `is_free`.

    >>> plain("<think>8?</think>So $\\\\boxed{\\\\frac{3}{4}}$.", is_free=False)
    'So $\\nAnswer: 3/4\\n$.'
    """
    if end := END.search(text):
        text = text[: end.start()] if text[: end.start()].strip() else text[end.end() :]
    if "</think>" in text:
        text = THOUGHT.sub("", text, count=1)
    if "<" in text:
        text = TAG.sub("\nAnswer: \\1\n", text)
    if "{" in text:
        text = JSON_FIELD.sub("\nAnswer: \\1\n", text)
    if "```" in text:
        text = FENCE.sub("", text)
    if "\\" in text:
        text = _without_latex(text)
    return text if is_free else text.translate(FULL_WIDTH)


def _without_latex(text: str) -> str:
    text = WORDS.sub("\\1", text)
    text = SIGN.sub(lambda sign: SIGNS[sign.group()], text)
    text = FRACTION.sub(_fraction, text)
    text = POWER.sub("^\\1", text)
    return BOX.sub("\nAnswer: \\1\n", text)


def _fraction(match: re.Match[str]) -> str:
    """`1/2`; after a digit, apart from it: a mixed number."""
    before, above, below, digit, digit_below = match.groups()
    return f"{before}{' ' if before else ''}{above or digit}/{below or digit_below}"
