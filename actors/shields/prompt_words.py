"""What attacks on prompts say, as sequences of words with few others between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


IGNORE = _set(
    "ignore ignores ignoring disregard forget bypass override overrule skip neglect discard dismiss drop"
)
NOT = _set("not don dont never no stop without cease")
OBEY = _set("follow obey heed comply respect")
PRIOR = _set(
    "previous prior above earlier preceding before former initial original past all any every other older existing everything"
)
YOUR = _set("your ur you these those its")
RULES = _set(
    "instruction instructions directions directive directives order orders rule rules guideline guidelines prompt prompts "
    "constraints restrictions policy policies programming guardrails filters training safety commands"
)
LIMITS = _set(
    "filter filters restriction restrictions limits limit limitations rules rule ethics ethical moral morals morality "
    "censorship policy policies guidelines guardrails safety boundaries"
)
VOID = _set(
    "void cancelled canceled revoked outdated obsolete invalid lifted disabled removed suspended expired superseded replaced"
)
NEW = _set("new real true actual updated")
MODEL = _set(
    "ai assistant assistants llm llms chatbot chatbots model models bot bots agent agents persona character roleplay pretend"
)
UNBOUND = _set(
    "dan unrestricted uncensored unfiltered jailbroken jailbreak amoral evil evilbot unbound unlimited lawless unaligned"
)
REVEAL = _set(
    "reveal show print output repeat display dump tell give leak disclose paste quote translate recite say expose send list"
)
SECRET = _set(
    "system hidden initial secret original developer developers confidential full exact entire"
)
PROMPT = _set("prompt prompts instruction instructions message configuration directives")
DATA = _set(
    "conversation chat messages password passwords key keys secrets secret credentials files token tokens variables email "
    "emails history data contents"
)
SEND = _set("send post upload forward append exfiltrate transmit leak mail collect")
RUN = _set("call execute run invoke use")
DECODE = _set("decode decipher decrypt base64 hex rot13 hexadecimal binary")
DO = _set("follow do execute obey run comply perform act")
USER = _set("user users human anyone anybody them permission")
TELL = _set("tell mention inform notify ask alert")


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words of some sets in their order.

    Attributes:
        name: what it is a sign of.
        weight: how sure a sign, from 0 to 1.
        sets: the words, one of each set.
        gaps: how many others may stand before each but the first.
    """

    name: str
    weight: float
    sets: Sequence[frozenset[str]]
    gaps: Sequence[int]

    def is_in(self, words: Sequence[str], known: frozenset[str]) -> bool:
        """Tell whether a text has it; ``known`` are its words."""
        if any(known.isdisjoint(some) for some in self.sets):
            return False
        first, *others = self.sets
        at = [place for place, word in enumerate(words) if word in first]
        for some, gap in zip(others, self.gaps, strict=True):
            following = {place + step for place in at for step in range(1, gap + 2)}
            at = [place for place in following if place < len(words) and words[place] in some]
        return bool(at)


def _phrase(name: str, weight: float, *parts: frozenset[str] | int | str) -> Phrase:
    sets = [_set(part) if isinstance(part, str) else part for part in parts[::2]]
    return Phrase(name, weight, sets, [part for part in parts[1::2] if isinstance(part, int)])  # type: ignore[arg-type]


PHRASES: Sequence[Phrase] = (
    _phrase("override", 0.8, IGNORE, 3, PRIOR, 3, RULES),
    _phrase("override", 0.8, IGNORE, 2, YOUR, 3, RULES),
    _phrase("override", 0.4, IGNORE, 1, "the", 2, RULES),
    _phrase("override", 0.7, IGNORE, 2, "everything all anything whatever", 3, "you youve above before", 3, "told said wrote learned taught given instructed line message conversation"),
    _phrase("override", 0.7, "set put leave", 1, "aside", 3, RULES),
    _phrase("override", 0.7, "set put leave", 3, RULES, 6, "aside"),
    _phrase("override", 0.7, NOT, 3, OBEY, 3, PRIOR | YOUR, 2, RULES),
    _phrase("override", 0.65, PRIOR | YOUR, 3, RULES, 5, VOID),
    _phrase("override", 0.6, NEW, 0, "instruction instructions task orders directive", 1, "are is follow from list the"),
    _phrase("override", 0.55, "instructions rules guidelines", 1, "have has", 1, "been", 1, VOID | NEW),
    _phrase("override", 0.7, IGNORE, 3, "safety content ethical moral usage", 2, "guidelines policy policies filter filters rules"),
    _phrase("override", 0.5, "everything all anything", 0, "before above prior", 6, VOID),
    _phrase("role", 0.75, "you youre", 3, "are act become now behave re", 4, UNBOUND),
    _phrase("role", 0.6, "act pretend respond answer be", 4, UNBOUND),
    _phrase("role", 0.8, "do", 0, "anything", 0, "now"),
    _phrase("role", 0.7, "enable activate enter switch unlock in", 4, "developer god dan unrestricted jailbreak debug sudo admin root", 1, "mode"),
    _phrase("role", 0.6, MODEL, 6, "without no never free ignores ignoring", 3, LIMITS),
    _phrase("role", 0.6, "act answer respond reply behave", 5, "without no free", 3, LIMITS),
    _phrase("role", 0.6, "you", 2, "have has had", 2, "no without", 3, LIMITS | RULES),
    _phrase("role", 0.6, "you", 6, "never", 1, "refuse refuses say says", 3, "no and or anything"),
    _phrase("role", 0.6, "never", 2, "cared care cares", 3, LIMITS | RULES),
    _phrase("role", 0.55, "im am", 3, "developer creator administrator admin operator owner", 12, "filters restrictions safety rules instructions"),
    _phrase("role", 0.55, "turn switch", 0, "off", 3, LIMITS),
    _phrase("prompt", 0.7, REVEAL, 4, SECRET, 2, PROMPT),
    _phrase("prompt", 0.7, REVEAL, 4, "your", 2, PROMPT),
    _phrase("prompt", 0.65, REVEAL, 4, PROMPT, 3, "you", 2, "given told got received have"),
    _phrase("prompt", 0.6, "what whats", 2, "is are was were s", 1, "your", 2, PROMPT),
    _phrase("prompt", 0.55, "what", 1, "were was", 0, "you", 1, "told given instructed"),
    _phrase("prompt", 0.6, REVEAL, 3, "text words everything all anything", 4, "above before"),
    _phrase("prompt", 0.55, REVEAL, 5, "secret hidden confidential admin api", 1, "password key keys credentials token"),
    _phrase("exfiltration", 0.55, SEND, 8, DATA, 10, "http https www url webhook"),
    _phrase("exfiltration", 0.45, SEND, 6, DATA, 3, "to"),
    _phrase("secrecy", 0.5, NOT | _set("silently secretly"), 1, TELL | _set("informing telling asking mentioning"), 3, USER),
    _phrase("secrecy", 0.5, "hide conceal", 2, "this it note", 2, "from", 2, USER),
    _phrase("to models", 0.55, "note attention instruction instructions message notice important dear", 4, MODEL - _set("character persona agent agents model")),
    _phrase("to models", 0.55, "if", 1, "you", 1, "are re", 4, MODEL),
    _phrase("to models", 0.55, MODEL, 3, "reading processing summarising summarizing reads readers parsing"),
    _phrase("to models", 0.5, "instructions note notes", 2, "for to", 2, "language ai", 1, "models model assistants agents"),
    _phrase("to models", 0.5, "the", 0, "model ai assistant llm", 0, "must should", 1, "say output call recommend answer tell"),
    _phrase("command", 0.5, "must", 3, RUN, 4, "tool function command script"),
    _phrase("encoded", 0.6, DECODE, 8, DO),
    _phrase("encoded", 0.6, DO, 6, DECODE),
    _phrase("override", 0.75, "ignoriere ignorier ignorieren vergiss missachte", 4, "anweisungen regeln vorgaben instruktionen befehle"),
    _phrase("override", 0.75, "ignora ignore olvida", 4, "instrucciones reglas ordenes"),
    _phrase("override", 0.75, "ignore ignorez oublie oubliez", 4, "consignes instructions regles"),
    _phrase("override", 0.75, "игнорируй игнорируйте забудь забудьте", 4, "инструкции указания правила"),
)  # fmt: skip
"""Most are of English; the last ones of German, Spanish, French and Russian."""

UNSPACED: Mapping[str, tuple[str, float]] = {
    r"(?:忽略|无视|忘记)[^\n]{0,12}(?:指令|指示|规则|提示)": ("override", 0.75),
    r"(?:输出|显示|告诉我)[^\n]{0,8}系统提示": ("prompt", 0.6),
}
"""What is written without spaces, as patterns: Chinese."""

VOCABULARY: frozenset[str] = (
    IGNORE | PRIOR | RULES | UNBOUND | _set("reveal system secret restrictions password assistant")
) - _set("other before every drop all any")
"""The words whose misspellings count."""


def phrases_in(words: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield the name and the weight of each phrase that a text has."""
    known = frozenset(words)
    for phrase in PHRASES:
        if phrase.is_in(words, known):
            yield phrase.name, phrase.weight
