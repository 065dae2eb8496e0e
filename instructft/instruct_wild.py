"""Take instructions out of posts, as InstructWild had them from tweets.

People share prompts inside all that a post holds besides. Clean one, say why
another is of no use, name the type of a task. XueFuzhao/InstructionWild did
this by hand; these are rules, and they err: the notebook counts how often.
The tables are there to be changed; each line is a regular expression.
"""

import html
import re
import unicodedata

# What asks for something: a sentence that starts so, or one that holds this.
COMMANDS = (
    r"(?:act|add|answer|be|brainstorm|calculate|check|classify|come up)\b",
    r"(?:compare|compose|continue|convert|correct|count|create|cut)\b",
    r"(?:define|describe|design|draft|edit|estimate|expand|explain)\b",
    r"(?:extract|find|fix|for each|from|generate|get|give|group|help)\b",
    r"(?:identify|imagine|invent|label|let's|list|make|match|name)\b",
    r"(?:outline|paraphrase|pick|plan|play|pretend|proofread|pull)\b",
    r"(?:put|rank|rate|recommend|rephrase|replace|reply|reword)\b",
    r"(?:rewrite|say whether|send|shorten|show|simplify|solve|sort)\b",
    r"(?:split|suggest|sum|summari[sz]e|take|teach|tell me|think of)\b",
    r"(?:translate|turn|work out|write|you(?: are|'re| play| work))\b",
)
QUESTIONS = (
    r"(?:what|which|who|where|why|how)(?:'?s|'re)?\b(?! (?:i|we|you) )",
    r"(?:is|are|can|could|should|would|do|does|did) (?!anyone|someone)\w",
)
WISHES = (
    r"\b(?:please|pls|tell me|give me|show me|explain)\b",
    r"\b(?:want|need) (?:an?|it)\b|\w+ \w+ \w+\?$",
    r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty) "
    r"(?:[\w-]+ ){0,2}(?:names|ideas|ways|options|questions|things|ones|"
    r"sentences|titles|lines|examples|reasons|tips)\b",
)
TO_PEOPLE = (
    r"\b(?:any(?:one|body)|who else|to everyone|everyone (?:on|in) here)\b",
)

# What a platform puts around an instruction.
PLATFORM = (
    r"(?m:^)[>\s]+",  # a reply cites
    r"\b(?-i:RT|QT)\b:?(?:\s*@\w+:?)?",
    r"(?m:^)(?:\d{1,2}/\d{1,2}\s+)+(?!(?:of|cups?|tsp|tbsp)\b)",
    r"\(\d{1,2}/\d{1,2}\)|(?:\s\d{1,2}/(?:\d{1,2})?)+\s*$",
    r"(?:https?://|www\.)[^\s)]+",
    r"(?<![\w@.])(?:[\w-]+\.)+(?:com|org|net|io)\b(?:/[^\s)]*)?",
    r"(?<![\w&/])#[^\W\d]\w*",
    r"(?<!\w)@\w+:?",
    r"(?<!\S)[:;]-?[()DP](?!\S)",
    r"\b(?:lol|lmao|haha+|omg|tbh|pls|plz|thx|ty)\b",
)
# What people write before a prompt, and after it.
LEADS = (
    r"\b(?:prompts?|try(?: this)?|asked|typed?|go-to)\b"
    r"[^:\"\n.!?>→]{0,25}(?::|→|-*>+)\s",
    r"\b(?:pasted?|used?|ask|asks|asked|typed?|put)(?: it)?(?: for)?:? (?=\")",
    r"\b(?:ask|asked|get|got|tell|told) (?:it|chatgpt|the (?:bot|robot)) "
    r"(?:to|for) |\bi ask(?:ed)? for |(?<=[.!?] )asked for ",
)
MATERIAL = (r"\b(?:this|these|below)\b[^.!?]*:$",)  # the quote is no prompt
REPLIES = (
    r"(?:(?<=[.?!\"])|\n)\s*(?:it|chatgpt|the bot) "
    r"(?:said|says|answered|told|gave|wrote|came)\b.*",
    r"(?<=[.?!\"])\s*(?:answer:|→|=>|-*>+).*",
    r"\s\([^()]*\)\s*$",
)
REACTIONS = (
    r"\b(?:love|loved|lovely|laughed|cried|genius|brilliant|magic|wow|neat)\b",
    r"\b(?:worked|works|runs|ran) (?:first|on|like|perfectly|every)\b",
    r"\bbest\b.*\b(?:ever|yet|week|month|year)\b|\bnever going back\b",
    r"\b(?:saved|thanks?|thank you|you're welcome|finally|can't argue)\b",
    r"\b(?:took|hired|got) (?:me|it|one|the|an?)\b|\bdone in\b",
    r"\b(?:next (?:up|week|one)|second one|spot on|game.?changer)\b",
)

# Why nothing in a post is usable. English is what has its small words.
ENGLISH = frozenset(
    "a an and any are as at be but by can do for from had has have how i if in"
    " is it its me my not of on one or our out so than that the their them"
    " then they this to up was we what when which who why with you your write"
    " list give make name".split()
)
MEDIA = (
    r"(?:photo|picture|pic|image|screenshot|video|drawing|voice|recording|"
    r"pdf|mp3)s?\b"
)
LINK = r"\(?(?:https?://|[\w.-]+\.(?:com|org|net|io)/)"
REASONS = {
    "personal": (
        r"\b(?:dob|date of birth|born(?: on)?) ?:?\s*\d",
        r"(?<!\w)\+?\d{5,6}[ -]\d{5,6}\b|\b\d{3}\)?[ -]\d{3}[ -]\d{4}\b",
        r"[\w.+-]+@[\w-]+\.\w+",
        r"\b(?:account|card|passport|insurance) (?:no\b|number)",
        r"\b\d+[a-z]?,? (?:(?-i:[A-Z])[\w']+ ){1,2}(?:street|st|road|rd|lane|"
        r"row|avenue|ave|close|drive|terrace|yard|court|way|crescent)\b",
        # a full name, and health or pay
        r"(?-i:[A-Z][a-z]+ [A-Z][a-z]+)\b.*\b(?:diagnos\w+|biopsy|cancer|"
        r"antidepressants|pregnan\w+|earns|salary|payslip|debts?)\b",
    ),
    "harmful": (
        r"\bfake\b|\bforg(?:e|ed|ery)\b|\blooks? (?:real|official)\b",
        r"\bwrite\b.*\b(?:five|5)[ -]star reviews\b|\bplagiarism\b.*\bcatch",
        r"\b(?:mean|cruel(?:l?est)?|nasty|hateful|vicious)\b.*"
        r"\b(?:message|repl(?:y|ies)|comments?|texts?)\b",
        r"\b(?:hack|jailbreak|malware|bomb|blackmail|stalk|counterfeit)",
        r"\bwithout (?:(?:him|her|them) knowing|getting caught)\b|\bspy on\b",
    ),
    "needs_media": (
        rf"\b(?:this|these|my|attached|send \w+ the) (?:\w+ )?{MEDIA}",
        rf"\b{MEDIA}.{{0,60}}(?:\bhere\b|\battached\b|\bbelow\b|{LINK})",
        rf"\b(?:this|these|my) (?:\w+ ){{1,2}}{LINK}",
        r"(?:^|[.!?:,\"]\s*|\bit )(?:draw|paint|sketch|sing)\b",
        r"(?:^|[.!?:,\"]\s*)(?:watch|listen to|look at) (?:the|this|my)\b",
    ),
    "incomplete": (
        r"\b(?:a|an|the|of|to|and|or|with|for|in|that|as|my|your)[\s.…]*$",
        r"\b(?:character limit|rest (?:is )?in (?:the )?\w+|cut off)\b",
        r"^[^\"]*(?:\"[^\"]*\"[^\"]*)*\"[^\".!?]*$",  # the quote stays open
    ),
}

# The type of an instruction; the first line that fits.
KINDS = (
    ("role_play", r"^(?:be|act|pretend|let's play|imagine you|you) "),
    ("role_play", r"\b(?:stay in character|you are (?:an?|the|my) )"),
    ("conversion", r"\bconvert\b|\btranslate\b|\bwhat year is [ivxlcdm]+\b"),
    ("conversion", r"\bhow many (?:cm|centi|metr)"),
    (
        "conversion",
        r"\b(?:in|into|as) (?:\w+ ){0,3}(?:metric|csv|json|bullet|points|"
        r"speech|tense|numerals|binary|hours|celsius)\b",
    ),
    (
        "code",
        r"\b(?:python|sql|javascript|java|html|css|regex|regular expression|"
        r"bash|shell|linux|git|cron|spreadsheet|excel|formula)\b",
    ),
    ("classification", r"^(?:label|classify|sort|tag|send each|group|mark)\b"),
    ("classification", r"\b(?:each|these|following)\b[^:\"]*\bor\b[^:\"]*:"),
    ("extraction", r"\bextract\b|^(?:pull out|get the)|\bfrom (?:this|these)"),
    ("extraction", r"^(?:list|find|make a (?:list|table))\b[^:]*:"),
    ("summarising", r"\b(?:summar\w+|headline|gist|main points?|sum .* up)"),
    ("summarising", r"\b(?:in|of|this,) (?:one|a single) (?:line|sentence)\b"),
    (
        "rewriting",
        r"^(?:re(?:write|word|phrase)|make|put|cut|turn|take|fix|shorten|"
        r"correct|simplify|polish|proofread)\b[^:\"]*[:\"]",
    ),
    ("planning", r"(?<!-)\b(?:plan|schedule|timetable|itinerary|packing)\b"),
    ("planning", r"\b(\w+) by \1\b"),
    ("brainstorming", r"^(?:suggest|brainstorm|think of|come up)\b"),
    ("brainstorming", r"\b(?:ideas|names|questions to ask|ways to)\b"),
    ("generation", r"^(?:write|compose|draft|create|make up|invent)\b"),
    ("advice", r"\b(?:should|would|could|can|do) (?:i|we)\b(?!.*\bneed\b)"),
    ("mathematics", r"\d.*\bhow (?:much|many|long|high|far)\b"),
    ("mathematics", r"\b(?:how (?:much|many|long|high|far)|what)\b.*\d"),
    ("mathematics", r"\b(?:probability|chance|average|per ?cent)\b"),
    ("advice", r"\b(?:i|i'm|my|we|our|me)\b|\bshould\b"),
    ("open_qa", r""),
)


def _each(patterns) -> list[re.Pattern]:
    return [re.compile(pattern, re.I | re.S) for pattern in patterns]


def _any(patterns) -> re.Pattern:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.I | re.S)


_COMMAND, _ASKS = _any(COMMANDS), _any((*COMMANDS, *QUESTIONS))
_WISHES, _TO_PEOPLE, _MATERIAL = map(_any, (WISHES, TO_PEOPLE, MATERIAL))
_PLATFORM, _REPLIES = _each(PLATFORM), _each(REPLIES)
_REACTIONS = _any(REACTIONS)
# a colon or an arrow before a question or a command leads in as well
_JOINED = rf"^[^:\"\n.!?>→]{{3,80}}(?::|→|-*>+) (?={_ASKS.pattern})"
_LEADS = _each((*LEADS, _JOINED))
_REASONS = [(reason, _any(table)) for reason, table in REASONS.items()]
_KINDS = [(name, _any((pattern,))) for name, pattern in KINDS]
_QUOTED = re.compile(r'(?<!\w)"([^"]*)(?:"(?!\w)|$)')
_BREAK = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')])|\n)\s+(?=\S)|\n(?=\S)")
_CLAUSE = re.compile(r"(?:^|[.!?:,;\n\"(>→-])\s*(?=\w)")
_STRAIGHT = str.maketrans("“”„«»‘’", '"""""\'\'')


def cleaned(post: str) -> str:
    """Strip from an instruction what platform and people put around it.

    >>> cleaned('Try this: "name TEN green birds!!" Worked first time #birds')
    'Name TEN green birds!'
    >>> cleaned("RT @a_b: HOW DO FISH SLEEP??? (1/2)")
    'How do fish sleep?'
    """
    text, before = _once(post), post
    while len(text) < len(before):  # a prompt may be wrapped twice
        text, before = _once(text), text
    return text


def _once(text: str) -> str:
    text = _quoted(_after_lead(_without_platform(text)))
    return _calm(_tidy(_without_end(text)))


def _without_platform(text: str) -> str:
    text = unicodedata.normalize("NFC", html.unescape(text))
    text = "".join(c for c in text.translate(_STRAIGHT) if not _is_emoji(c))
    for pattern in _PLATFORM:
        text = pattern.sub(" ", text)
    return text.strip()


def _is_emoji(c: str) -> bool:
    if c in "\u200d\ufe0e\ufe0f\u20e3" or "\U000e0020" <= c <= "\U000e007f":
        return True  # what joins or varies them
    category = unicodedata.category(c)
    return "\u2300" < c and (category == "So" or "🏻" <= c <= "🏿")


def _after_lead(text: str) -> str:
    """Keep what stands after the first lead-in and before the next.

    A text that starts with a command has none: what looks so belongs to it.
    """
    if _COMMAND.match(text) or not (first := _lead(text)):
        return text
    left = text[first.end() :]
    if second := _lead(left):
        ends = [m.end() for m in _BREAK.finditer(left, 0, second.start())]
        left = left[: ends[-1]] if ends else left
    return left if left.strip() else text


def _lead(text: str) -> re.Match | None:
    found = [m for lead in _LEADS if (m := lead.search(text))]
    return min(found, key=re.Match.start, default=None)


def _quoted(text: str) -> str:
    """Take a prompt out of its quotation marks, if the post cites one."""
    if _COMMAND.match(text):
        return text
    for match in _QUOTED.finditer(text):
        quote, before = match[1].strip(), text[: match.start()].strip()
        size = len(quote.split())
        asks = size > 3 and (_ASKS.match(quote) or not before)
        if (asks or size > 7) and not _MATERIAL.search(before):
            return quote
    return text


def _without_end(text: str) -> str:
    """Drop the model's reply and what the poster says of it."""
    for pattern in _REPLIES:
        text = pattern.sub("", text).strip() or text
    for start in reversed([m.end() for m in _BREAK.finditer(text)]):
        last = text[start:]
        asks = last.endswith("?") or _ASKS.match(last)
        if asks or not _REACTIONS.search(last):
            break
        text = text[:start].rstrip()
    return text


def _tidy(text: str) -> str:
    text = re.sub(r"[!?]*\?[!?]+|!+\?", "?", text)
    text = re.sub(r"([!.,])\1+(?=[\s\"')]|$)", r"\1", text)
    text = re.sub(r"\s+([,!?])(?=\s|$)", r"\1", text)
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def _calm(text: str) -> str:
    """Put capitals to sentence case if a text shouts."""
    letters = [c for c in text if c.isalpha()]
    capitals = sum(map(str.isupper, letters))
    if len(letters) < 12 or capitals < 0.8 * len(letters):
        return text
    text = re.sub(r"\bi\b", "I", text.lower())
    return re.sub(r"(^|[.!?] )[^\W\d_]", lambda m: m[0].upper(), text)


def unusable(post: str) -> str:
    """Say why nothing in a post is usable: the first reason found, or "".

    In this order: not_english, personal, harmful, needs_media, incomplete,
    no_instruction.

    >>> unusable("Describe what you see in this photo.")
    'needs_media'
    >>> unusable("My inbox has never been so tidy!")
    'no_instruction'
    >>> unusable("How do fish sleep?")
    ''
    """
    text = html.unescape(post).translate(_STRAIGHT).strip()
    if not _is_english(text):
        return "not_english"
    for reason, pattern in _REASONS:
        if pattern.search(text):
            return reason
    return "" if _asks(text) else "no_instruction"


def _is_english(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", _without_platform(text).lower())
    small = sum(word in ENGLISH for word in words)
    plain = sum(word.isascii() for word in words)
    enough = 0.15 * len(words) if len(words) > 4 else 0
    return small >= enough and plain >= 0.5 * len(words)


def _asks(text: str) -> bool:
    if _lead(text) or _quoted(text) != text:
        return True
    return any(
        _WISHES.search(sentence)
        or any(
            _ASKS.match(sentence, m.end()) for m in _CLAUSE.finditer(sentence)
        )
        for sentence in _BREAK.split(text)
        if not _TO_PEOPLE.search(sentence)
    )


def kind(instruction: str) -> str:
    """Name the type of a task, one of 13, by the first rule that fits.

    >>> kind("Write a poem about rain.")
    'generation'
    >>> kind("Why is the sky blue?")
    'open_qa'
    """
    text = instruction.strip()
    return next(name for name, pattern in _KINDS if pattern.search(text))
