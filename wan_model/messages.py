"""Messages for the person at the graph: an English sentence, with its code and values for other languages."""


class Message:
    """A sentence with values; `str` gives the English one.

    code: the key under which other languages keep their wording. english: the sentence, with {name} for each value.
    values: numbers, texts or other messages, by name. An exception carries a message as its only argument:
    `raise ValueError(Message(...))` reads as the sentence.
    """

    def __init__(self, code: str, english: str, /, **values: "int | float | str | Message"):
        self.code, self.english, self.values = code, english, values

    def __str__(self) -> str:
        return self.english.format(**self.values)

    def plain(self) -> dict:
        """Return `text` (the sentence), `code` and `values` for JSON, messages among the values likewise."""
        values = {name: value.plain() if isinstance(value, Message) else value for name, value in self.values.items()}
        return {"text": str(self), "code": self.code, "values": values}


def message_of(error: Exception) -> Message | str:
    """Return the message that `error` carries, or its text where it carries none."""
    carried = error.args[0] if error.args else None
    return carried if isinstance(carried, Message) else str(error)
