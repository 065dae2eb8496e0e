"""What goes wrong when models play both roles of a conversation, by rules.

The rules were written from `data/conversations/planted.jsonl` and measured
on `planted_heldout.jsonl`, whose rows were not read.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from instructft.similarity import words


class Fault(NamedTuple):
    """What is wrong with a conversation, where, and what shows it."""

    kind: str
    turn: int  # index into the messages
    why: str


def faults(
    messages: Sequence[dict],
    prompts: Sequence[str] = (),
    longest: int = 200,
    alike: float = 0.55,
) -> list[Fault]:
    """Say what is wrong with a conversation that models played, by rules.

    The kinds: `empty_turn` (no letter or digit), `over_long` (more than
    `longest` words), `loop` (more than `alike` of a turn's words, and all of
    its numbers, stood in an earlier one of its speaker's; a user may ask
    again in other words), `endless_goodbye` (three farewells in a row),
    `prompt_leak` (words of the role `prompts`, or talk of having a role),
    `role_flip` (the assistant asks for work, or the user delivers it) and
    `asks_instead` (the assistant only asks back). Each kind is listed once,
    at the first turn that shows it. The rules read English, and they err:
    notebook 04 measures how often.

    >>> faults([{"role": "user", "content": "Hi"},
    ...     {"role": "assistant", "content": "..."}])
    [Fault(kind='empty_turn', turn=1, why="'...'")]
    """
    turns = [
        _Turn(i, message["role"], message["content"])
        for i, message in enumerate(messages)
        if message["role"] != "system"
    ]
    found = [
        *_empty(turns),
        *_long(turns, longest),
        *_loops(turns, alike),
        *_goodbyes(turns),
        *_leaks(turns, prompts),
        *_flips(turns),
        *_asks(turns),
    ]
    once = {fault.kind: fault for fault in reversed(found)}
    return sorted(once.values(), key=lambda fault: (fault.turn, fault.kind))


class _Turn(NamedTuple):
    at: int
    role: str
    text: str


def _empty(turns: list[_Turn]) -> Iterator[Fault]:
    for at, _, text in turns:
        if not any(letter.isalnum() for letter in text):
            yield Fault("empty_turn", at, repr(text[:20]))


def _long(turns: list[_Turn], longest: int) -> Iterator[Fault]:
    for at, _, text in turns:
        if (count := len(text.split())) > longest:
            yield Fault("over_long", at, f"{count} words")


# A user who wants the same text again, a little different
_EDIT = re.compile(
    r"\b(swap|change|replace|put in|add|shorter|longer|instead of|again"
    r"|correct|insert|leave out|drop|make (it|that)|mention"
    r"|should (also )?say)\b",
    re.IGNORECASE,
)
_LITTLE = frozenset(
    "a an and as at be by for from have i in is it its of on or s so that the"
    " their them then there they this to up was we with you your".split()
)


def _content(text: str) -> set[str]:
    """The stems, roughly, of a text's words that carry a meaning."""
    return {word[:5] for word in words(text)} - _LITTLE


def _numbers(stems: set[str]) -> set[str]:
    return {stem for stem in stems if stem[0].isdigit()}


def _loops(turns: list[_Turn], alike: float) -> Iterator[Fault]:
    for role in ("user", "assistant"):
        # who was not understood may ask again, in other words
        least = alike if role == "assistant" else (1 + alike) / 2
        said: list[tuple[int, set[str]]] = []
        for place, (at, who, text) in enumerate(turns):
            stems = _content(text)
            if who != role or len(stems) < 4:  # "Yes." may well come twice
                continue
            asked = turns[place - 1].text if place else ""
            if role == "assistant" and _EDIT.search(asked):
                said.append((at, stems))
                continue
            for earlier, others in said:
                share = 2 * len(stems & others) / (len(stems) + len(others))
                if share > least and _numbers(stems) == _numbers(others):
                    why = f"{share:.0%} of the words of message {earlier}"
                    yield Fault("loop", at, why)
                    break
            said.append((at, stems))


_FAREWELL = re.compile(
    r"\b(thank|thanks|thankful|grateful|appreciated?|cheers|cheerio|ta|bye"
    r"|adieu|goodbye|farewell|toodle|good ?night|take care|see you|so long"
    r"|until (then|next|we)|(talk|speak|chat|meet) (to you )?(soon|again)"
    r"|you('| a)?re (very |most |so |too )?(welcome|kind|a (gem|star"
    r"|treasure))"
    r"|pleasure|honou?r|any ?time|not at all|don't mention it|kind of you"
    r"|that's (very |so |most )?kind|glad|delighted|happy (to|i could|that)"
    r"|(nice|lovely|good|great|joy) (to (work|help|talk|meet)|working|talking"
    r"|chatting|helping)|(best|kind|warm|warmest|good) (wishes|regards"
    r"|greetings)|all the (very )?best|(good|best of|very best of) luck"
    r"|fingers crossed|fair winds|sleep (well|tight)|great help|blushing"
    r"|have (an? \w+|fun|yourself)|(happy|safe|pleasant|sweet) \w+"
    r"|wish(ing|es)? (you|to)|i hope (you|yours)|same to you|likewise|enjoy"
    r"|(to )?you (too|as well)|come back|keep in touch|you've been)\b",
    re.IGNORECASE,
)
# without one of these it is politeness, and no end
_PARTING = re.compile(
    r"\b(thank|thanks|ta|cheers|cheerio|(good)?bye|farewell|adieu|toodle"
    r"|welcome|so long|take care|luck|good ?night|greetings|wishes|regards"
    r"|weekend|evening|likewise|the best|see you)\b",
    re.IGNORECASE,
)
FAREWELLS = 3


def _goodbyes(turns: list[_Turn]) -> Iterator[Fault]:
    run, parting, gap = 0, 0, False  # one turn between may be merely polite
    for at, _, text in turns:
        length = len(text.split())
        if "?" in text or length > 40:
            run = parting = 0
        elif _FAREWELL.search(text):
            run, gap = run + 1, False
            parting += bool(_PARTING.search(text))
        elif gap or length > 16:
            run = parting = 0
        else:
            gap = True
        if run >= FAREWELLS and parting >= 2:
            yield Fault("endless_goodbye", at, f"{run} farewells in a row")


# Somebody who speaks of having been given a role
_ROLE_TALK = re.compile(
    r"\b(system (prompt|message)|role[- ]?play(ing)?|simulat(ed|ion)"
    r"|flip roles"
    r"|(not|never|n't) (to )?(flip|swap|switch|break|reverse|leave) (the |our "
    r"|my )?(roles?|character|part)|stay(ing)? in (character|role)"
    r"|(my|our) (role|character|persona|instructions|brief|briefing"
    r"|guidelines)"
    r"|(my|the) (system |original |initial )?(prompt|script|outline|brief) "
    r"(say|said|tell|told|is|was|require|forbid|ask|want)s?"
    r"|according to (my|the) (prompt|role|outline|script|instructions|brief)"
    r"|(i|we)('m| am|'re| are|'ve been| was| were| have been) (also |only "
    r"|just "
    r"|here )?(told|instructed|assigned|configured|prompted|set up|cast"
    r"|playing "
    r"(the|an?)|acting as|pretending|supposed|meant|programmed)\b"
    r"|(play|act as|playing) (the|an?) (role|part|user|assistant|human)"
    r"|(in|as) (my|this) (role|part|persona|capacity)|assigned the"
    r"|(the|my) (word|token|phrase|signal) (i|that i|to|that ends)"
    r"|(off limits|not allowed|forbidden|ruled out) (for|to) me"
    r"|(end|ends|stop|close) (the|this) (session|dialogue|role|exchange)"
    r"|(task|conversation)[_ ]done|done token)\b|<\w+>",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\b(DONE|FINISHED|STOP|END|COMPLETED?|OVER|EXIT)\b")
_TO_A_MODEL = frozenset(
    "you your never always must only user assistant role answer reply turn"
    " stop wait end".split()
)


def _leaks(turns: list[_Turn], prompts: Sequence[str]) -> Iterator[Fault]:
    size = 6  # words in a row
    runs: set[tuple[str, ...]] = set()
    for prompt in prompts:
        said = words(prompt)
        each = (tuple(said[i : i + size]) for i in range(len(said)))
        # the task itself may well be said again
        runs |= {run for run in each if _TO_A_MODEL.intersection(run)}
    for at, _, text in turns:
        said = words(text)
        starts = range(len(said) - size + 1)
        quoted = (tuple(said[i : i + size]) for i in starts)
        if run := next((run for run in quoted if run in runs), None):
            yield Fault("prompt_leak", at, " ".join(run))
        elif match := _ROLE_TALK.search(text) or _TOKEN.search(text):
            yield Fault("prompt_leak", at, match[0])


# Somebody who wants work done. Questions such as "could you tell me ..."
# ask for what is needed, and are no such orders
_WORK = (
    "write|draft|list|make|create|compute|calculate|translate|summari[sz]e"
    "|rewrite|rephrase|suggest|add|fix|check|send|do|convert|find|compare|plan"
    "|prepare|design|outline|teach|turn|continue|provide|recommend|correct"
    "|shorten|expand|set|put|draw|phrase|work out|compile|guide|build|solve"
)
_TELL = "tell|explain|show|give|describe|name|walk|help"
_ORDERS = re.compile(
    rf"\b((can|will) you (\w+ly |also |now |then |please "
    rf"|perhaps )*({_WORK})\b"
    r"|(?<![a-z] )(could|would) you (\w+ly |also |now |then |please |first )*"
    r"(?!\w+ly |also |now |then |please |first )(?!tell|say|share|be|most"
    r"|like|prefer|rather|want|need|clarify|confirm|describe|specify|mind|let"
    r"|explain|give|call|consider|have|use|expect|mean|elaborate|name|feel)\w+"
    rf"|(please|kindly|next|now),? (please |kindly |also )?({_WORK}) (me|us"
    r"|an?|the|my|one|two|three|it|this|that|up|in|some)\b"
    rf"|({_WORK}|get|bring|hand)\b[^.?!]*\b(for|to) me\b"
    rf"|({_WORK}|guide|hand|bring|get) me\b|your turn|another go"
    rf"|({_WORK}) (that|this|it|one)( one)? yourself|counting on you"
    r"|i('d| would) (like|love)( for)? you to|i (need|want) you to"
    r"|, (would|could|will) you\?)",
    re.IGNORECASE,
)
_ORDERS_TOLD = re.compile(
    rf"(^|[.!?:;,] |\b(and|please|you|kindly) )({_TELL}) (me|us)\b"
    r"|\bi (need|want) (an?|the|some|your)\b|\bi want to (?!make|help|be|know)"
    r"|\bexplain to me\b"
    rf"|\b(please|kindly) ({_TELL})\b|\bwith mine\b",
    re.IGNORECASE,
)
_PLEASED = re.compile(
    r"^\W*(thanks|thank you|perfect|great|brilliant|ideal|lovely|good"
    r"|excellent"
    r"|wonderful|nice|very (clear|good)|that('s| is| was)|those|these|i'll|oh"
    r"|got it|understood|well done|ah|super|it('s| is) \w+,? thanks)\b",
    re.IGNORECASE,
)
_MORE = re.compile(
    rf"\b(please|kindly|next|now)\b,? (\w+ly )?({_WORK}|go on|keep)\b"
    r"|\bplease\b[^.!?]*$|\bi'll take the\b|\bi can\b[^.!?]*, would you\?"
    r"|\b(should|ought|do|can|could) i\b(?! (help|assist))[^.!?]*\?"
    r"|\bgood way to\b[^.!?]*\?",
    re.IGNORECASE,
)
_DELIVERS = re.compile(
    r"^\W*(sure|certainly|of course|absolutely|here (is|are|'s)|here you"
    r"|happy to|glad to|solution)\b",
    re.IGNORECASE,
)
_QUIZ = re.compile(
    r"\b(ask|quiz|test|examine|interview|question|challenge|drill|set) (me"
    r"|us)\b"
    r"|\bhomework\b",
    re.IGNORECASE,
)


def _spoken(text: str) -> str:
    """A turn without what it quotes; "" for a letter that it writes."""
    if re.match(r"\W*(dear|hi|hello|to whom)\b[^.!?\n]{0,40},", text, re.I):
        return ""
    return re.sub(r"\"[^\"]*\"|“[^”]*”", "", text)


def _order(said: str) -> re.Match | None:
    """Find where an assistant's turn gives the user work to do."""
    found = _ORDERS.search(said)
    if not found and not _only_asks(said):
        found = _ORDERS_TOLD.search(said)
    if not found and _PLEASED.search(said):  # as whose wish was granted
        found = _MORE.search(said)
    return found


def _flips(turns: list[_Turn]) -> Iterator[Fault]:
    quiz = any(t.role == "user" and _QUIZ.search(t.text) for t in turns)
    for at, role, text in turns:
        said = _spoken(text)
        if role == "user":
            match = _DELIVERS.search(said)
            if match and len(said.split()) > 15 and "?" not in said:
                yield Fault("role_flip", at, match[0])
        elif not quiz and (match := _order(said)):
            yield Fault("role_flip", at, match[0])


_TOLD = 24  # words that say enough for an answer
_SAID_SO = re.compile(
    r"\bas (i|we|already) (said|wrote|mentioned|told|asked)|\bi (already"
    r"|just) "
    r"(said|told|wrote|gave)|\b(all|everything)( else)? (is|that"
    r"|i)\b.*\b(first|"
    r"request|message|above)|\bjust (write|give|tell|answer|list|do|pick|say)"
    r"|\b(is|was|are) (all )?in my|\bi told you|\bplease (go on|answer)",
    re.IGNORECASE,
)


def _asks(turns: list[_Turn]) -> Iterator[Fault]:
    told, before, quiz = 0, False, False
    for place, (at, role, text) in enumerate(turns):
        if role == "user":
            told = max(told, len(text.split()))
            quiz = quiz or bool(_QUIZ.search(text))
            continue
        if quiz or _order(_spoken(text)):
            return  # asked for, or from here on another fault
        only = _only_asks(text)
        following = turns[place + 1].text if turns[place + 1 :] else ""
        if only and (before or told >= _TOLD or _SAID_SO.search(following)):
            yield Fault("asks_instead", at, text[-60:])
        before = only


_POLITE = re.compile(
    r"\W*(sure|happy|glad|great|good|lovely|nice|wonderful|sounds|that"
    r"|what an?"
    r"|of course|certainly|absolutely|with pleasure|i\b|understood|noted|thank"
    r"|okay|ok|before|to |first|interesting|gladly|no problem|let me|excellent"
    r"|perfect|congratulations|right|fine|all right|hello|hi|oh|ah"
    r"|a \w+ \w+!)",
    re.IGNORECASE,
)
_OFFERS = re.compile(
    r"^(how|what) about|^why not|\b(like|want) me to\b|\b(shall|should) (i"
    r"|we)\b",
    re.IGNORECASE,
)


def _only_asks(text: str) -> bool:
    """Say whether a turn ends in a question and answers nothing."""
    said = [s for s in re.split(r"(?<=[.!?:])\s+", text.strip()) if s]
    others = [s for s in said if not s.endswith("?")]
    if not said or said[-1] in others or _OFFERS.search(said[-1]):
        return False
    short = sum(len(s.split()) for s in others) <= 12
    return short and all(s[-1] == ":" or _POLITE.match(s) for s in others)
