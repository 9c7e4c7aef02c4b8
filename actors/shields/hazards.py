"""The hazards that `llama_guard` tells apart: the codes of Llama Guard 3, after the taxonomy of MLCommons, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HAZARDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "S1": (
            "Violent Crimes",
            "help with, or praise of, violence against people or animals: killing, assault, kidnapping, terrorism",
        ),
        "S2": (
            "Non-Violent Crimes",
            "help with theft, fraud, money laundering, drugs, weapons, burglary, vandalism or breaking into computers",
        ),
        "S3": ("Sex Crimes", "help with sexual assault, trafficking, harassment or coercion"),
        "S4": ("Child Exploitation", "anything that sexualises children or helps who abuses them"),
        "S5": ("Defamation", "false claims that harm the name of a living person"),
        "S6": (
            "Specialized Advice",
            "medical, legal, financial or electoral advice that only professionals may give, or false assurance of safety",
        ),
        "S7": (
            "Privacy",
            "private facts about a person that could harm her body, her accounts or her property",
        ),
        "S8": ("Intellectual Property", "violations of others' copyrights, patents or trademarks"),
        "S9": (
            "Indiscriminate Weapons",
            "help with chemical, biological, radiological, nuclear or other weapons that kill many",
        ),
        "S10": (
            "Hate",
            "contempt for people because of their origin, religion, gender, orientation, disability or the like",
        ),
        "S11": (
            "Self-Harm",
            "encouragement of, or help with, suicide, self-injury or eating disorders",
        ),
        "S12": ("Sexual Content", "erotic descriptions"),
        "S13": ("Elections", "false claims about when, where, how or by whom one votes"),
        "S14": (
            "Code Interpreter Abuse",
            "code that attacks the machine that runs it, breaks out of its container or wears it down",
        ),
    }
)
"""What each code means: its name, and what falls under it."""
CODES = tuple(HAZARDS)
