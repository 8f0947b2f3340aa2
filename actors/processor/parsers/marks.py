"""Finding a mark in streamed text: what is certainly before it, and what may yet turn out to be its beginning."""


def split_at(text: str, mark: str, *, strip: bool = False) -> tuple[str, str, bool]:
    """Split text at the first mark: (before, after, found).

    Where there is none, `after` is what may be the beginning of one at the end of the text, and must be held back;
    with `strip`, so is white space before it.
    """
    at = text.find(mark)
    if at >= 0:
        return text[:at], text[at + len(mark) :], True
    keep = 0
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            keep = length
            break
    cut = len(text) - keep
    if strip:
        cut = len(text[:cut].rstrip())
    return text[:cut], text[cut:], False
