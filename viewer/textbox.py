"""The line a sentence is typed in. No pygame here."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TextBox:
    """One line of text with a cursor.

    Attributes:
        open: whether typing goes here.
        text: what has been typed.
        cursor: characters before the cursor.
        composing: what an input method is still composing; not yet part of the text.
    """

    open: bool = False
    text: str = ""
    cursor: int = 0
    composing: str = ""

    def opened(self, text: str = "") -> "TextBox":
        """Return the box ready for typing, with `text` in it."""
        return TextBox(True, text, len(text))

    def typed(self, text: str) -> "TextBox":
        """Insert `text` at the cursor; line breaks become spaces, control characters vanish."""
        line = "".join(" " if char in "\r\n\t" else char for char in text)
        kept = "".join(char for char in line if char.isprintable() or char in "\u200c\u200d")
        whole = self.text[: self.cursor] + kept + self.text[self.cursor :]
        return TextBox(self.open, whole, self.cursor + len(kept))

    def key(self, name: str) -> "TextBox":
        """Return the box after an editing key; others change nothing."""
        text, at = self.text, self.cursor
        match name:
            case "backspace" if at > 0:
                return replace(self, text=text[: at - 1] + text[at:], cursor=at - 1)
            case "delete":
                return replace(self, text=text[:at] + text[at + 1 :])
            case "left":
                return replace(self, cursor=max(0, at - 1))
            case "right":
                return replace(self, cursor=min(len(text), at + 1))
            case "home":
                return replace(self, cursor=0)
            case "end":
                return replace(self, cursor=len(text))
        return self
