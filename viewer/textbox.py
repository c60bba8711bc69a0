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
        hint: what Tab would add at the end.
        label: what is being typed, where it is no sentence.
    """

    open: bool = False
    text: str = ""
    cursor: int = 0
    composing: str = ""
    hint: str = ""
    label: str = ""

    def opened(self, text: str = "") -> "TextBox":
        """Return the box ready for typing, with `text` in it."""
        return TextBox(True, text, len(text))

    def typed(self, text: str) -> "TextBox":
        """Insert `text` at the cursor; line breaks become spaces, control characters vanish."""
        line = "".join(" " if char in "\r\n\t" else char for char in text)
        kept = "".join(char for char in line if char.isprintable() or char in "\u200c\u200d")
        whole = self.text[: self.cursor] + kept + self.text[self.cursor :]
        return replace(self, text=whole, cursor=self.cursor + len(kept), composing="")

    def key(self, name: str, words: bool = False) -> "TextBox":
        """Return the box after an editing key; others change nothing.

        Args:
            name: as pygame calls it.
            words: whether it goes over a whole word, as with Ctrl.
        """
        text, at = self.text, self.cursor
        if words and name in ("backspace", "left"):
            begin = text[:at].rstrip().rfind(" ") + 1
            cut = text[:begin] + text[at:] if name == "backspace" else text
            return replace(self, text=cut, cursor=begin)
        if words and name in ("delete", "right"):
            gap = text.find(" ", at + len(text[at:]) - len(text[at:].lstrip()))
            end = gap if gap >= 0 else len(text)
            return replace(
                self,
                text=text[:at] + text[end:] if name == "delete" else text,
                cursor=at if name == "delete" else end,
            )
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


class Typist:
    """Types sentences: the box, the sentences sent before, and known phrases to complete with.

    Attributes:
        box: the line as it is now.
        phrases: what Tab can complete to, best first.
    """

    def __init__(self) -> None:
        self.box = TextBox()
        self.phrases: tuple[str, ...] = ()
        self._sent: list[str] = []
        self._back = 0  # how far up in the sentences sent
        self._draft = ""
        self._found: tuple[str, ...] = ()  # what the Tabs in a row go through
        self._opened_by = ""

    def open(self, text: str = "", opened_by: str = "", label: str = "") -> None:
        """Open the box; the character that opened it may still arrive as text, and is no part."""
        self.box = replace(TextBox().opened(text), label=label)
        self._back, self._found, self._opened_by = 0, (), opened_by

    def close(self) -> None:
        """Close the box and drop what is in it."""
        self.box = TextBox()

    def sent(self, text: str) -> None:
        """Remember a sentence for later."""
        if text and self._sent[-1:] != [text]:
            self._sent.append(text)

    def type(self, text: str) -> None:
        """Insert text at the cursor."""
        if not (text == self._opened_by and not self.box.text):
            self._set(self.box.typed(text))
        self._opened_by = ""

    def compose(self, text: str) -> None:
        """Show what an input method is composing."""
        self.box = replace(self.box, composing=text, hint="")

    def key(self, name: str, words: bool = False) -> None:
        """Edit, go through the sentences sent (up, down), or complete (tab)."""
        if name == "tab":
            self._complete()
        elif name in ("up", "down") and not self.box.label:
            self._recall(1 if name == "up" else -1)
        else:
            self._set(self.box.key(name, words))

    def _set(self, box: TextBox) -> None:
        self._found = ()
        matches = () if box.label or box.cursor < len(box.text) else self._matches(box.text)
        rest = matches[0][len(box.text) :] if matches and box.text else ""
        self.box = replace(box, hint=rest, composing="")

    def _matches(self, text: str) -> tuple[str, ...]:
        start = text.lower()
        known = dict.fromkeys((*reversed(self._sent), *self.phrases))
        return tuple(p for p in known if p.lower().startswith(start) and p.lower() != start)

    def _complete(self) -> None:
        if self.box.label:
            return
        if self._found:  # Tab again: the next one
            self._found = (*self._found[1:], self._found[0])
        else:
            self._found = self._matches(self.box.text[: self.box.cursor])
        if self._found:
            self.box = replace(self.box.opened(self._found[0]), label=self.box.label)

    def _recall(self, up: int) -> None:
        if self._back == 0:
            self._draft = self.box.text
        self._back = min(max(self._back + up, 0), len(self._sent))
        text = self._sent[-self._back] if self._back else self._draft
        self._set(replace(TextBox().opened(text)))
