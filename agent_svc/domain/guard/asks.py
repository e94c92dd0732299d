"""Finds an explicit instruction to delegate in what a customer (or a parent run) said.

Explicit means: told to, in so many words. A question about sub-agents, a text about managing
people, or a request that could be split is none. What was said last counts: "don't use sub-agents"
takes an instruction back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent_svc.domain.content import excerpt
from agent_svc.domain.guard.facts import Instruction
from agent_svc.domain.guard.prose import on_topic, own_words, sentences

EXCERPT_CHARS = 160

_NUMBERS = {
    **{"a": 1, "an": 1, "one": 1, "another": 1, "two": 2, "both": 2, "three": 3, "four": 4},
    **{"five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12},
    **{"ein": 1, "eine": 1, "einen": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5},
    **{"un": 1, "una": 1, "uno": 1, "dos": 2, "tres": 3, "cuatro": 4, "cinco": 5},
    **{"une": 1, "deux": 2, "trois": 3, "quatre": 4, "cinq": 5},
    **{"um": 1, "uma": 1, "dois": 2, "duas": 2, "três": 3, "quatro": 4},
}
_AGENT = (
    r"(?:sub[- ]?agents?|sub[- ]?sessions?|(?:child|helper|worker|parallel|background|separate|"
    r"other|another|more|multiple|several|independent|additional)[- ](?:\w+ )?"
    r"(?:agents?|sessions?|workers?))\b"
)
# After a verb that has no other sense here, a plain "agent" will do.
_ANY_AGENT = rf"(?:{_AGENT}|agents?\b|child sessions?\b|sessions?\b|workers?\b)"
# "Use the sub-agents' results" asks for a summary.
_NOT_ITS_WORK = (
    r"(?!['’]?s?['’]? (?:results?|answers?|findings?|outputs?|reports?|notes?|work|texts?)\b)"
)
_GAP = r"(?:[\w'-]+ ){0,4}?"
_WORK = (
    r"(?:this|that|it|these|those|each|every|all|both|everything|"
    r"the (?:\w+ )?(?:\w+ )?(?:work|tasks?|parts?|questions?|research|jobs?|items?|steps?|"
    r"request|following|rest|comparison|search|lookups?))\b"
)
# What may stand before an imperative.
_CLAUSE = (
    r"(?:^|[,;:(-] ?|\b(?:please|kindly|and|then|now|first|instead|just|so|ok|okay|hey|hi|"
    r"you (?:should|must|can|may|could|shall|have to|need to|are to|will)(?: now| please| also)?|"
    r"i(?:'d| would)? (?:want|like|need|expect)(?: for)? you to|i (?:order|tell|ask) you to|let's|"
    r"(?:can|could|would|will) you(?: please| kindly)?|make sure (?:to|you)|be sure to|remember to|"
    r"try to|go ahead and|feel free to|to answer this|for (?:this|each|every)[^,.]{0,30},?) )"
)
_INSTRUCTIONS: Sequence[re.Pattern[str]] = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_CLAUSE}(?P<what>(?:spawn|spin up|fire up|kick off|launch)\b {_GAP}{_ANY_AGENT})",
        rf"{_CLAUSE}(?P<what>(?:start|use|create|run|employ|involve|make use of|"
        rf"assign|dispatch|deploy|set up|open|bring in)\b {_GAP}{_AGENT}){_NOT_ITS_WORK}",
        # With "the" they are some that are at work already.
        rf"{_CLAUSE}(?P<what>(?:get|have|let|ask|send)\b (?!(?:\w+ )?(?:the|that|this|your|my) )"
        rf"{_GAP}{_AGENT}){_NOT_ITS_WORK}",
        rf"{_CLAUSE}(?P<what>(?:call|use|invoke|run) {_GAP}sessions?_spawn\b)",
        rf"{_CLAUSE}(?P<what>delegate {_WORK}(?! to (?:my|our|him|her|them|[a-z]+@)))",
        rf"{_CLAUSE}(?P<what>delegate\b[^.?!]{{0,80}}?\bto {_GAP}{_ANY_AGENT})",
        rf"{_CLAUSE}(?P<what>(?:hand|pass|give|farm|outsource|split|divide|distribute|assign)\b"
        rf"[^.?!]{{0,60}}?\b(?:to|between|among|across|into|over) {_GAP}{_ANY_AGENT})",
        rf"{_CLAUSE}(?P<what>(?:do|answer|solve|research|work on|handle|check|compare|find|process)"
        rf"\b[^.?!]{{0,60}}?\b(?:with|using|through|via|by) {_GAP}{_AGENT})",
        rf"{_CLAUSE}(?P<what>(?:one|a|an|1) {_AGENT} (?:per|for each|for every|each)\b)",
        r"(?P<what>\b(?:start|nutz|benutz|verwend|erstell|beauftrag|setz|lass|spawn)"
        r"(?:e|et|t|en sie)\b [^.?!]{0,50}?\b(?:sub|unter)[- ]?agent\w*)",
        r"(?P<what>\bdelegier(?:e|en sie)\b[^.?!]{0,40}?\b(?:das|dies|es|alles|die|den|an)\b)",
        r"(?P<what>\b(?:lanza|inicia|usa|utiliza|crea|lance|inicie|use|utilice|cree)\b "
        r"[^.?!]{0,30}?\bsub-?agentes?\b)",
        r"(?P<what>\bdelega (?:esto|eso|esta|todo|la|el|las|los)\b)",
        r"(?P<what>\b(?:lance|lancez|utilise|utilisez|crée|créez|démarre|démarrez)\b "
        r"[^.?!]{0,30}?\bsous-?agents?\b)",
        r"(?P<what>\bdélègue[sz]?(?:-le|-la|-les)?\b)",
        r"(?P<what>\b(?:inicie|lance|use|utilize|crie|inicia|lança|usa)\b "
        r"[^.?!]{0,30}?\bsub-?agentes?\b)",
        r"(?P<what>\bdelegue (?:isto|isso|esta|tudo|a|o|as|os)\b)",
    )
)
_DECLINED = re.compile(
    r"\b(?:do not|don't|dont|never|no need to|without|avoid|not|no|rather than|instead of|stop|"
    r"refrain from)\b[^.,;?!]{0,40}?(?:\bsub[- ]?agents?\b|\bdelegat\w+|\bspawn\w*|"
    r"sessions?_spawn)|"
    r"\b(?:keine?n?|ohne|nicht)\b[^.,;?!]{0,30}?(?:\b(?:sub|unter)[- ]?agent\w*|\bdelegier\w*)|"
    r"\b(?:sin|no)\b[^.,;?!]{0,30}?(?:\bsub-?agentes?|\bdelegu?\w*)|"
    r"\b(?:sans|ne|n')\b[^.,;?!]{0,30}?(?:\bsous-?agents?|\bdélégu?\w*)|"
    r"\b(?:sem|não)\b[^.,;?!]{0,30}?(?:\bsub-?agentes?|\bdelegu?\w*)",
    re.IGNORECASE,
)
# Asks about it instead of for it.
_ABOUT = re.compile(
    r"^(?:and |but |so )?(?:how|what|why|when|where|who|which|do you|does|did|is|are|was|were|"
    r"explain|describe|tell me (?:about|how|why|what|whether|if)|should i|may i|can i|could i|"
    r"wie|was|warum|wieso|wann|können|kann|cómo|qué|por qué|comment|pourquoi|qu'|como|o que|"
    r"write|schreib\w*|translate|summari[sz]e)\b",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"\b(?:(?:can|could|would|will) you|(?:kannst|könntest|würdest) du|(?:können|könnten) sie|"
    r"puedes|podrías|peux-tu|pourrais-tu|pouvez-vous|pourriez-vous|pode|poderia)\b",
    re.IGNORECASE,
)
_PLEASE = re.compile(r"\b(?:please|bitte|por favor|s'il (?:te|vous) plaît)\b", re.IGNORECASE)
_ENOUGH_AFTER = 2
"""Words after "can you start sub-agents" that make it a request instead of a question."""


def asks_to_delegate(*said: str) -> Instruction | None:
    """Find the instruction to delegate that holds after everything that was said, oldest first."""
    holds: Instruction | None = None
    for text in said:
        if not on_topic(text):
            continue
        for sentence in filter(on_topic, sentences(own_words(text))):
            if _DECLINED.search(sentence):
                holds = None
            elif (found := _instruction(sentence)) is not None:
                holds = found
    return holds


def _instruction(sentence: str) -> Instruction | None:
    if _ABOUT.match(sentence):
        return None
    for pattern in _INSTRUCTIONS:
        found = pattern.search(sentence)
        if found is None:
            continue
        if sentence.rstrip().endswith("?") and not _requested(sentence, found.end()):
            continue
        return Instruction(excerpt(sentence, EXCERPT_CHARS), _count(found["what"]))
    return None


def _requested(question: str, end: int) -> bool:
    """True for "can you start a sub-agent to check the trains?", which asks for it."""
    if not _POLITE.search(question[:end]):
        return False
    return len(re.findall(r"\w+", question[end:])) >= _ENOUGH_AFTER or bool(
        _PLEASE.search(question)
    )


def _count(words: str) -> int:
    for word in re.findall(r"[\w]+", words.lower())[1:]:
        if word.isdigit() and 0 < int(word) <= 100:
            return int(word)
        if word in _NUMBERS:
            return _NUMBERS[word]
    return 0
