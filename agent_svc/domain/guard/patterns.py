"""The wordings of claims, by language. Data for `claims`, which says when one counts.

A pattern may name a word class in angle brackets, `<AGENT>`; gaps are bounded and end with the
sentence, so that no text takes long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from agent_svc.domain.guard.facts import Subject

_ADVERB = (
    r"(?:currently|presently|really|simply|also|therefore|thus|unfortunately|actually|still|just|"
    r"yet|personally|either|regrettably|directly|sadly)"
)
_NOT_ALLOWED = (
    r"(?:allowed|permitted|authori[sz]ed|able|enabled|configured|equipped|set up|designed|entitled|"
    r"cleared|in a position|capable|eligible)"
)

WORDS: dict[str, str] = {
    # What delegation is about: a word for a sub-agent, the tool, or "agent" beside a word that
    # makes it another one. "Agents" alone are also people who sell flats.
    "AGENT": (
        r"(?:sub[- ]?agents?|sub[- ]?sessions?|sessions?[_ .-]spawn\w*|"
        r"(?:child|helper|worker|parallel|background|additional|other|another|new|separate|further|"
        r"multiple|extra|more|secondary|independent|specialised|specialized|agent)(?:[- ]ai)?[- ]"
        r"(?:\w+[- ])?(?:agents?|sessions?|workers?|assistants?)|multi[- ]?agents?)\b"
    ),
    "SPAWN": r"(?:spawn|launch|spin up|spinning up|fork|orchestrat)\w*",
    "SPAWNED": r"(?:\w+ ){0,3}?(?:agents?|sessions?|workers?)\b",
    "VERB": (
        r"(?:spawn|start|launch|creat|spin up|spinning up|fire up|firing up|kick off|kicking off|"
        r"initiat|invok|call|us(?:e|ing)\b|run|open|delegat|hand|fork|orchestrat|employ|assign|"
        r"deploy|coordinat|manag|set up|setting up|instantiat|access|trigger|bring in|work with|"
        r"make use)\w*"
    ),
    "START": (r"(?:<SPAWN> <SPAWNED>|<VERB>[^.?!]{0,60}?\b<AGENT>|\b<AGENT>[- ]spawning)"),
    "HERE": (
        r"\b(?:here|for me|to me|me|my|i|i'm|i've|us|our|right now|currently|at this time|"
        r"at the moment|at present|from here|"
        r"(?:in|for|on|by|of|with) (?:this|the current|my) (?:\w+ )?(?:environment|session|chat|"
        r"context|conversation|setup|deployment|configuration|workspace|mode|run|system|platform|"
        r"interface))\b"
    ),
    "I": rf"\b(?:i|we)(?:\s*,?\s*{_ADVERB},?)*",
    "CANNOT": (
        r"(?:<I>|\b(?:i|we)\b[^.?!,;]{1,40}? (?:and|but|so))\s*"
        r"(?:can(?:no|')t|can not|couldn't|could not|may not|mustn't|must not|"
        rf"(?:(?:am|'m|are|'re|was|were)(?: {_ADVERB})* not|wasn't|weren't|aren't)(?: {_ADVERB})* "
        rf"{_NOT_ALLOWED}|"
        rf"(?:am|'m|are|'re|was|were)(?: {_ADVERB})* (?:unable|forbidden|prohibited|restricted|"
        r"barred|prevented|blocked|disallowed|ineligible|incapable|unauthori[sz]ed|limited)|"
        rf"(?:have not|haven't)(?: {_ADVERB})* been {_NOT_ALLOWED})"
    ),
    "TO": rf"(?:\s+(?:to|from|of|for|when it comes to|in|{_ADVERB})){{0,3}}",
    "RIGHT": (
        r"(?:permissions?|authori[sz]ation|authority|rights?|access|ability|capability|"
        r"capabilities|privileges?|clearance|tools?|functions?|functionality|means|way|mechanism|"
        r"options?|features?|approval|budget|quota|allowance|credentials?|command|power|interface)"
    ),
    "LACK": (
        rf"<I>\s*(?:(?:do not|don't|did not|didn't|no longer)(?: {_ADVERB})* "
        rf"(?:have|possess|hold|see)|lack|have(?: {_ADVERB})* no|'ve no|"
        rf"(?:have not|haven't|was not|wasn't|am not|'m not)(?: {_ADVERB})* (?:been )?"
        r"(?:given|granted|provided with|offered))"
    ),
    "FOR_IT": (
        r"(?: (?:that(?: would)? (?:let|allow|enable|permit)s? me|"
        r"which(?: would)? (?:let|allow)s? me|needed|required|necessary|called|named|available|"
        r"here|in this \w+))*"
        r" (?:(?:to|for|of|in order to|that would|that can|that could) )?"
    ),
    "BARRED": (
        rf"(?:(?:isn't|aren't|wasn't|(?:is|are|was|were)(?: {_ADVERB})* not)(?: {_ADVERB})* "
        r"(?:made )?(?:available|enabled|permitted|allowed|supported|possible|accessible|"
        r"authori[sz]ed|something (?:i|that i)|part of|within|an option|offered|included|provided|"
        r"granted|open)|"
        rf"(?:is|are|was|were|has been|have been)(?: {_ADVERB})* (?:unavailable|disabled|"
        r"forbidden|prohibited|blocked|restricted|denied|switched off|turned off|impossible|"
        r"out of (?:my )?reach|beyond|outside|off[- ]limits|not permitted|disallowed)|"
        r"(?:requires?|needs?) (?:\w+ ){0,2}?(?:permissions?|authori[sz]ation|approval|admin\w*|"
        r"rights|privileges))"
    ),
    "ABOUT_STARTING": (
        r"(?:(?:<VERB> (?:\w+ ){0,5}?)?<AGENT>|<SPAWN> <SPAWNED>|"
        r"(?:the |a )?(?:session|agent)[- ]spawn\w* \w+)"
    ),
    "DELEGATING": (
        r"delegat\w+ (?:any |the |this |that |these |your |parts? of )*"
        r"(?:it|this|that|these|work|tasks?|subtasks?|anything|parts?|requests?)\b"
    ),
    "MARK": (
        r"(?:as an? (?:ai|language|large)|language model|ai (?:model|assistant)|tools?\b|agents?\b|"
        r"in this (?:environment|session|chat|conversation|context|setup|mode)|permission|"
        r"authori[sz])"
    ),
    "STOPS": (
        r"(?:forbids?|prohibits?|prevents?|stops?|bars?|blocks?|disallows?|restricts?|"
        r"(?:(?:does|do|did|will|would) not|doesn't|don't|didn't|won't) (?:\w+ )?"
        r"(?:permit|allow|let|enable|authori[sz]e|grant|give)) (?:me|us)\b"
    ),
    "FULL": r"(?:reached|hit|exceeded|exhausted|used up|maxed out|met|full|spent|depleted|run out)",
    # Up to a word that makes what follows a condition.
    "TEXT": r"(?:(?!\b(?:when|once|if|until|unless|whenever)\b)[^.?!])",
    "LIMIT": r"(?:maximum|max|limit|cap|quota|ceiling|allowance)",
    "DE_AGENT": (
        r"(?:(?:sub|unter|hilfs|kind)[- ]?(?:agent|session|sitzung)\w*|sessions?_spawn|"
        r"(?:weitere|andere|zusätzliche|neue|parallele|mehrere|separate|eigene)\w* "
        r"(?:agent|session|sitzung|instanz)\w*)"
    ),
    "DE_VERB": (
        r"(?:start|erstell|erzeug|anzuleg|anleg|aufruf|aufzuruf|beauftrag|einsetz|einzusetz|nutz|"
        r"verwend|delegier|spawn|öffn|aktivier|ausführ|auszuführ|initiier|anstoß|anzustoß)\w*"
    ),
    "DE_RIGHT": (
        r"(?:berechtigung|rechte|erlaubnis|befugnis|genehmigung|möglichkeit|werkzeug|tool|zugriff|"
        r"funktion|autorisierung|zugang)\w*"
    ),
    "ES_AGENT": (
        r"(?:sub-?agentes?|sessions?_spawn|(?:otr[oa]s?|nuev[oa]s?|vari[oa]s|más) "
        r"(?:sesiones|agentes)(?: de agentes?)?|agentes? (?:adicionales|secundarios|paralelos))"
    ),
    "FR_AGENT": (
        r"(?:sous-?agents?|sous-?sessions?|sessions?_spawn|"
        r"(?:d'autres|de nouveaux|de nouvelles|plusieurs) (?:agents|sessions)|"
        r"agents (?:supplémentaires|parallèles))"
    ),
    "PT_AGENT": (
        r"(?:sub-?agentes?|sessions?_spawn|(?:outr[oa]s?|nov[oa]s?|vári[oa]s|mais) "
        r"(?:sessões|agentes)|agentes? (?:adicionais|paralelos))"
    ),
}


@dataclass(frozen=True)
class Pattern:
    """One wording. A group named `claim` marks where the claim begins, else the whole match."""

    subject: Subject
    regex: re.Pattern[str]


def expand(pattern: str) -> str:
    """Put the words in for the names in angle brackets."""
    while (found := re.search(r"<([A-Z_]+)>", pattern)) is not None:
        pattern = pattern.replace(found[0], WORDS[found[1]])
    return pattern


def compiled(pattern: str) -> re.Pattern[str]:
    """Make a regular expression of a pattern with word classes."""
    return re.compile(expand(pattern), re.IGNORECASE)


def _all(rows: Sequence[tuple[Subject, str]]) -> tuple[Pattern, ...]:
    return tuple(Pattern(subject, compiled(pattern)) for subject, pattern in rows)


# The end of a budget, a limit or the depth comes first: such a claim may be true.
_LIMITS: Sequence[tuple[Subject, str]] = (
    ("budget", r"\b(?:budget|tokens?|credits?)\b[^.?!]{0,40}<AGENT>[^.?!]{0,30}<FULL>"),
    ("budget", r"\b<AGENT>[^.?!]{0,40}\b(?:budget|tokens?)\b[^.?!]{0,30}<FULL>"),
    ("budget", r"<CANNOT><TO>\s+<START>[^.?!]{0,60}\bbudget\b"),
    ("depth", r"<CANNOT><TO>\s+<START>[^.?!]{0,60}\bdepth\b"),
    ("depth", r"\bdepth (?:limit|cap)\b[^.?!]{0,60}<FULL>[^.?!]{0,80}<AGENT>"),
    ("limit", r"<CANNOT><TO>\s+<START>[^.?!]{0,60}\b<LIMIT>"),
    (
        "limit",
        r"\b(?:i|we)(?:'ve| have)?(?: already)? <FULL>[^.?!]{0,30}\b<LIMIT>[^.?!]{0,40}\b<AGENT>",
    ),
    ("limit", r"\b<LIMIT><TEXT>{0,30}\b<AGENT><TEXT>{0,50}\b(?:been|is|are) <FULL>"),
    ("limit", r"\b<AGENT> <LIMIT><TEXT>{0,30}\b(?:been|is|are) <FULL>"),
    ("limit", r"\bno (?:more|further|additional) <AGENT> (?:can|may) be "),
)

_ENGLISH: Sequence[tuple[Subject, str]] = (
    # The speaker may not, cannot, lacks.
    ("permission", r"<CANNOT><TO>\s+<START>"),
    ("tool", r"<LACK>[^.?!]{0,40}?\b<RIGHT><FOR_IT>(?:the |a |any )?<START>"),
    ("tool", r"<LACK>[^.?!]{0,30}?\b<RIGHT> (?:to|for) (?:the |a |any )?<AGENT>"),
    (
        "tool",
        r"<LACK>[^.?!]{0,40}?\b(?:<AGENT>|(?:agent|session)[- ]spawn\w*|spawn\w*|delegation)"
        r"[^.?!,]{0,15}? <RIGHT>",
    ),
    ("tool", r"<LACK>[^.?!,]{0,30}\bsessions?_\w+"),
    (
        "permission",
        r"<I>(?:'d| would)? (?:need|require)[^.?!]{0,30}?\b(?:permissions?|approval|"
        r"authori[sz]ation|admin\w*|elevated|rights|privileges)[^.?!]{0,40}?\b<START>",
    ),
    ("permission", r"<STOPS>[^.?!]{0,40}?\b<START>"),
    ("permission", r"\bprevented from <START>"),
    ("permission", r"\b<AGENT>,? (?:which|that) <CANNOT>"),
    (
        "tool",
        r"\bmy (?:\w+ )?(?:capabilities|permissions?|tools?|toolset|role|rights|functions?|"
        r"abilities|instructions|configuration|setup)\b[^.?!,;]{0,20}? (?:do not|don't|does not|"
        r"doesn't) (?:\w+ )?(?:include|cover|extend to|contain|support|allow(?: for)?|permit) "
        r"<START>",
    ),
    (
        "permission",
        r"^(?=.*<HERE>).*?(?P<claim>\b)it(?:'s| is|) ?(?:n't|not) (?:possible|permitted|allowed)"
        r"[^.?!]{0,20}? to <START>",
    ),
    # Nobody may, in this place. "Sub-agents are not allowed to ..." is about sub-agents.
    (
        "tool",
        r"^(?=.*<HERE>).*?(?P<claim>\b)<ABOUT_STARTING>[^.?!]{0,40}? <BARRED>(?! to (?!me\b|us\b))",
    ),
    ("tool", r"\bsessions?_spawn\b[^.?!]{0,20}\b(?:permission|access) denied"),
    ("tool", r"\bsessions?_spawn\b[^.?!]{0,30}? <BARRED>"),
    (
        "tool",
        r"^(?=.*(?:<HERE>|\bavailable\b)).*?(?P<claim>\b)there(?:'s| is| are|'re| was) "
        r"(?:no|not any|not a|currently no)\b[^.?!]{0,25}?\b<RIGHT>[^.?!]{0,40}?<START>",
    ),
    (
        "tool",
        r"\bno (?:<AGENT>|spawn\w*|delegation)? ?<RIGHT> (?:for|to|that)[^.?!]{0,30}?<START>"
        r"[^.?!]{0,30}\b(?:available|provided|given|granted|offered|found)",
    ),
    # "Delegate" alone is also what managers do: it needs a word of this world beside it.
    ("permission", r"^(?=.*<MARK>).*?(?P<claim>)<CANNOT><TO>\s+<DELEGATING>"),
    ("tool", r"^(?=.*<MARK>).*?(?P<claim>)<LACK>[^.?!]{0,40}?\b<RIGHT><FOR_IT><DELEGATING>"),
)

_GERMAN: Sequence[tuple[Subject, str]] = (
    (
        "permission",
        r"\b(?:ich (?:kann|darf|konnte|durfte)|(?:kann|darf|konnte|durfte) ich)\b"
        r"[^.?!]{0,40}?\b(?:kein|nicht)\w*[^.?!]{0,40}?<DE_AGENT>[^.?!]{0,40}?\b<DE_VERB>",
    ),
    (
        "permission",
        r"\b(?:ich (?:kann|darf|konnte|durfte)|(?:kann|darf|konnte|durfte) ich)\b"
        r"[^.?!]{0,30}?<DE_AGENT>[^.?!]{0,20}?\bnicht\b[^.?!]{0,20}?<DE_VERB>",
    ),
    (
        "permission",
        r"\b(?:ich bin|bin ich)\b[^.?!]{0,25}?\bnicht (?:berechtigt|befugt|autorisiert|"
        r"in der lage|imstande|dazu berechtigt)[^.?!]{0,40}?<DE_AGENT>",
    ),
    ("tool", r"\bmir fehl(?:t|en|te)\b[^.?!]{0,25}?<DE_RIGHT>[^.?!]{0,40}?<DE_AGENT>"),
    (
        "tool",
        r"\b(?:ich (?:habe|besitze)|habe ich)\b[^.?!]{0,25}?\b(?:kein|nicht)\w*"
        r"[^.?!]{0,25}?<DE_RIGHT>[^.?!]{0,40}?<DE_AGENT>",
    ),
    (
        "permission",
        r"\b(?:es ist mir|ist es mir|mir ist es)[^.?!]{0,20}?\b(?:nicht (?:erlaubt|gestattet|"
        r"möglich)|untersagt|verboten|unmöglich)[^.?!]{0,30}?<DE_AGENT>",
    ),
    ("tool", r"<DE_AGENT>[^.?!]{0,30}?\bmir\b[^.?!]{0,40}?\bnicht (?:zur verfügung|erlaubt)"),
    (
        "tool",
        r"<DE_AGENT>[^.?!]{0,25}?\b(?:ist|sind) (?:hier|in dieser \w+|für mich|mir)[^.?!]{0,20}?"
        r"\b(?:nicht (?:verfügbar|erlaubt|möglich|aktiviert|gestattet)|deaktiviert|gesperrt)",
    ),
)

_SPANISH: Sequence[tuple[Subject, str]] = (
    (
        "tool",
        r"\bno (?:tengo|dispongo de|cuento con|poseo)[^.?!]{0,20}?\b(?:permisos?|autorización|"
        r"acceso|herramientas?|capacidad|derechos?|posibilidad|forma)[^.?!]{0,40}?<ES_AGENT>",
    ),
    (
        "permission",
        r"\bno (?:puedo|pude|podía|estoy autorizad[oa]|se me permite|me está permitido|"
        r"me es posible|soy capaz|estoy en condiciones)(?: (?:a|para|de))? "
        r"(?:iniciar|lanzar|crear|usar|utilizar|abrir|invocar|ejecutar|arrancar|delegar)\b"
        r"[^.?!]{0,30}?<ES_AGENT>",
    ),
    ("tool", r"<ES_AGENT> no (?:está|están|se)[^.?!]{0,12}?(?:disponible|permitid|habilitad)"),
)

_FRENCH: Sequence[tuple[Subject, str]] = (
    (
        "tool",
        r"\bje n'ai (?:pas|aucun\w*)[^.?!]{0,20}?\b(?:permission|autorisation|droits?|accès|"
        r"outils?|possibilité|capacité|moyen)[^.?!]{0,40}?<FR_AGENT>",
    ),
    ("tool", r"\bje ne dispose (?:pas|d'aucun\w*)[^.?!]{0,60}?<FR_AGENT>"),
    (
        "permission",
        r"\b(?:je ne (?:peux|puis|pouvais) (?:malheureusement )?pas|je n'ai pas pu|"
        r"je ne suis pas (?:autorisée?|en mesure|habilitée?|capable)|il m'est (?:impossible|"
        r"interdit)|il ne m'est pas (?:possible|permis))(?: (?:à|de|d'))?\s?"
        r"(?:lancer|créer|démarrer|utiliser|ouvrir|invoquer|déléguer|exécuter)\b"
        r"[^.?!]{0,30}?<FR_AGENT>",
    ),
)

_PORTUGUESE: Sequence[tuple[Subject, str]] = (
    (
        "tool",
        r"\bnão (?:tenho|possuo|disponho de)[^.?!]{0,20}?\b(?:permissão|permissões|autorização|"
        r"acesso|ferramentas?|capacidade|direitos?|como)[^.?!]{0,40}?<PT_AGENT>",
    ),
    (
        "permission",
        r"\bnão (?:posso|pude|consigo|consegui|estou autorizad[oa]|me é (?:permitido|possível)|"
        r"sou capaz)(?: (?:a|para|de))? (?:iniciar|lançar|criar|usar|utilizar|abrir|invocar|"
        r"executar|delegar)\b[^.?!]{0,30}?<PT_AGENT>",
    ),
)

# Compiled when a text first speaks of agents: that takes a third of a second, which would come on
# top of every start.


@cache
def claims() -> tuple[Pattern, ...]:
    """What says that a run may not or cannot delegate; those about limits first."""
    return _all((*_LIMITS, *_ENGLISH, *_GERMAN, *_SPANISH, *_FRENCH, *_PORTUGUESE))


@cache
def invented() -> tuple[Pattern, ...]:
    """What tells of the work of sub-agents."""
    return _all(
        (
            (
                "result",
                r"\b(?:i|we)(?:'ve| have)?(?: (?:now|just|already|also|successfully))* "
                r"(?:spawned|started|launched|created|kicked off|spun up|dispatched|deployed|"
                r"delegated|assigned|handed)\b[^.?!]{0,60}?\bsub[- ]?agents?\b",
            ),
            (
                "result",
                r"\b(?:(?:the|both|my|all|two|three|four|five|\d+|first|second) (?:\w+ )?"
                r"sub[- ]?agents?|sub[- ]?agent (?:\d+|one|two|three|a|b)\b)(?: (?:have|has))?"
                r"(?: (?:both|all|each|now|just|already))* (?:reported|found|finished|returned|"
                r"completed|confirmed|came back|replied|concluded)\b",
            ),
            (
                "result",
                r"\bich habe\b[^.?!]{0,40}?<DE_AGENT>[^.?!]{0,20}"
                r"\b(?:gestartet|beauftragt|erstellt)",
            ),
            ("result", r"\bhe (?:lanzado|iniciado|creado)\b[^.?!]{0,25}?<ES_AGENT>"),
            ("result", r"\bj'ai (?:lancé|démarré|créé)\b[^.?!]{0,25}?<FR_AGENT>"),
            ("result", r"\b(?:iniciei|lancei|criei)\b[^.?!]{0,25}?<PT_AGENT>"),
        )
    )
