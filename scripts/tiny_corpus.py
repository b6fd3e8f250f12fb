"""A seed -> the conversations that `builtin:tiny-chat` is trained on. Pure text: no torch, no tokenizer, no files.

Each conversation is a list of chat messages made by one of the task functions in `TASKS`: repeating, answering who
and where, reading and rewriting lists of fields, picking an item, sorting words and sentences into kinds, counting,
small talk, following a system message, some Chinese. Many of the words are made up on the spot, so the only way to
answer is to copy from the prompt: that ability is what a later fine-tune builds on.

What it must not know: the demo skill. No text contains the skill's fields as it writes them (`product=`, `urgency=`,
`team=`) or the name of one of its products; tests/test_tiny_model.py searches the whole corpus for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

Message = dict[str, str]
Conversation = list[Message]
Task = Callable[[Random], Conversation]

SEED = 20261121
CONVERSATIONS = 40_000


def listed(text: str) -> list[str]:
    """Words between spaces, as a list: easier on the eye than hundreds of quotes."""
    return text.split()


KINDS: dict[str, list[str]] = {
    "animal": listed("cat dog horse eagle salmon beetle rabbit tiger whale goose otter spider camel lizard sheep"),
    "fruit": listed("apple pear plum cherry grape melon lemon mango peach fig banana orange apricot berry kiwi"),
    "tool": listed("hammer saw drill wrench chisel ladder rope shovel needle brush knife file clamp axe spade"),
    "color": listed("red blue green yellow purple white black brown pink silver gold gray amber teal scarlet"),
    "music": listed("song drum violin piano flute guitar choir concert melody rhythm trumpet opera tune singer band"),
    "weather": listed("rain snow storm wind cloud fog thunder frost sunshine hail breeze drizzle heat ice sleet"),
    "money": listed("price bank coin loan tax wage budget salary invoice refund payment discount receipt card fee"),
    "travel": listed("train ticket airport hotel map bridge road ship luggage passport tunnel border station taxi"),
    "device": listed(
        "phone laptop printer camera router speaker keyboard screen battery cable scanner sensor clock lamp charger "
        "monitor headset watch lock scale"
    ),
    "software": listed(
        "update search page export save button menu crash error network server backup file folder app browser window "
        "setting login password"
    ),
    "mail": listed("letter parcel stamp courier address envelope delivery box postcard package"),
    "health": listed("doctor nurse fever cough tablet bandage clinic muscle tooth sleep pulse vitamin wound diet"),
}
GOOD = listed("great lovely excellent wonderful perfect happy kind brilliant pleasant fresh")
BAD = listed("awful terrible broken sad horrible rude dirty boring wrong angry")
PEOPLE = listed(
    "Anna Ben Clara David Emma Felix Grace Hugo Iris Jonas Karen Leo Maria Nina Oscar Paula Quinn Rosa Simon Tina "
    "Uma Victor Wendy Yara Zoe Ahmed Mei Ravi Sofia Tomas"
)
PLACES = listed("Paris Lima Oslo Cairo Delhi Tokyo Rome Quito Accra Hanoi Boston Geneva Porto Riga Dakar")
VERBS = listed("found sold lost painted carried moved opened closed cleaned borrowed hid wanted made broke bought")
TIMES = ["this morning", "last night", "yesterday", "today", "at noon", "next week", "on Monday", "after lunch"]
ADJECTIVES = listed("old new small large heavy light quiet loud empty full early late slow fast missing locked cracked")
NUMBERS = listed("zero one two three four five six seven eight nine ten")
ORDINALS = listed("first second third fourth fifth")
ROLES = listed("owner color size city name topic price date author title status level place kind model unit")
FILLERS = listed(
    "please thank you very much now soon when time week day here there we are is was has have not does did can need "
    "still again only never always all office team customer account access address user product order urgent help "
    "answer question issue problem support service reply wait rush working morning urgency critical minor blocked "
    "low normal high wrong twice amount text code the a an and or of in on at to for from with my our your it its this "
    "that be come came left nothing nobody everyone work hour month year page start begin role lost admin send where "
    "what who how why which no yes cannot new look check want like go get give make makes take turn turns off noise "
    "crack charged refused paid arrived finds shows says keeps crashes hot bad smell empty own first last next few "
    "colleague billing accounts shipping repairs important fine days thing something without after before us me him "
    "her they them would should could may"
)
ONSETS = listed("b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl sh st th tr")
VOWELS = listed("a e i o u a e i o ai ea oo")
CODAS = ["", "", "", "n", "r", "l", "s", "m", "x", "t", "nd", "rk", "lt", "sh"]
CHINESE_WORDS = listed(
    "苹果 天气 音乐 老师 学校 城市 火车 电脑 手机 朋友 问题 时间 今天 明天 昨天 工作 公司 产品 数据 模型 训练 "
    "文字 名字 红色 蓝色 快乐 医生 雨天 山水 月亮 太阳 茶叶 米饭 书本 花园 小猫 小狗 北京 上海 广州 成都 杭州"
)
CHINESE_NAMES = listed("小明 小红 小刚 李雷 王芳 张伟 刘洋 陈静 赵敏 周杰")

ALL_WORDS = [word for words in KINDS.values() for word in words] + GOOD + BAD + ADJECTIVES + FILLERS + VERBS

# Words worth a token of their own: a tokenizer trained on the text alone would spend its merges on made-up syllables.
VOCABULARY = sorted(
    {*ALL_WORDS, *ROLES, *NUMBERS, *ORDINALS, *listed("user assistant system hello times name list as")}
)


def conversations(seed: int = SEED, count: int = CONVERSATIONS) -> Iterator[Conversation]:
    """The corpus, in training order; the first n are the same whatever `count` is."""
    rng = Random(seed)
    tasks = [task for task, weight in TASKS for _ in range(weight)]
    for _ in range(count):
        conversation = rng.choice(tasks)(rng)
        if rng.random() < 0.08 and len(conversation) == 2:
            conversation = [*rng.choice(tasks)(rng), *conversation]
            conversation = [m for i, m in enumerate(conversation) if i == 0 or m["role"] != "system"]
        yield conversation


def as_text(conversation: Conversation) -> str:
    """One conversation on lines of `role: content`, for people and for searching."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in conversation)


# Words


def made_up(rng: Random) -> str:
    """A word nobody has seen: one to three syllables."""
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )


def word(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.4 else rng.choice(ALL_WORDS)


def phrase(rng: Random, most: int = 5) -> str:
    return " ".join(word(rng) for _ in range(rng.randint(1, most)))


def name(rng: Random) -> str:
    """A person, or a made-up proper name of one or two words."""
    draw = rng.random()
    if draw < 0.25:
        return rng.choice(PEOPLE)
    if draw < 0.65:
        return made_up(rng).capitalize()
    second = made_up(rng) if draw < 0.8 else rng.choice(ALL_WORDS)
    first = made_up(rng) if draw < 0.92 else rng.choice(ALL_WORDS)
    return f"{first.capitalize()} {second.capitalize()}"


def place(rng: Random) -> str:
    return rng.choice(PLACES) if rng.random() < 0.4 else made_up(rng).capitalize()


def thing(rng: Random) -> str:
    """A noun, sometimes with an adjective or a made-up one."""
    noun = made_up(rng) if rng.random() < 0.3 else rng.choice(KINDS[rng.choice(list(KINDS))])
    return f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.3 else noun


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def number(rng: Random) -> str:
    return str(rng.randint(0, 10 ** rng.randint(1, 4)))


def turn(question: str, answer: str, system: str = "") -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *messages] if system else messages


# Tasks: each makes one conversation


def repeat(rng: Random) -> Conversation:
    text = rng.choice((phrase(rng, 7), name(rng), name(rng), f"{phrase(rng, 3)} {number(rng)}"))
    lead = rng.choice(("Repeat after me: ", "Say: ", "Copy this: ", "Echo: ", "Write exactly: "))
    return turn(lead + text, text)


def repeat_times(rng: Random) -> Conversation:
    count, text = rng.randint(2, 4), word(rng)
    return turn(f"Say {text} {NUMBERS[count]} times.", " ".join([text] * count))


def who_did(rng: Random) -> Conversation:
    who, what, where, did = name(rng), thing(rng), place(rng), rng.choice(VERBS)
    when = rng.choice(TIMES)
    sentence = rng.choice(
        (
            f"{who} {did} the {what} in {where} {when}.",
            f"In {where}, {who} {did} the {what}.",
            f"{capital(when)} {who} {did} the {what} near {where}.",
            f"The {what} is in {where} because {who} {did} it {when}.",
        )
    )
    question, answer = rng.choice(
        (
            (f"Who {did} the {what}?", who),
            ("Who is it about?", who),
            (f"What was {did}?" if did not in ("hid", "broke") else "What is it about?", what),
            ("Where was it?", where),
            ("Which name comes first?", min((who, where), key=sentence.index)),
        )
    )
    order = rng.random()
    return turn(f"{sentence} {question}" if order < 0.7 else f"{question} {sentence}", answer)


def who_gave(rng: Random) -> Conversation:
    giver, taker, what = name(rng), name(rng), thing(rng)
    sentence = rng.choice((f"{giver} gave the {what} to {taker}.", f"{taker} got the {what} from {giver}."))
    question, answer = rng.choice(
        ((f"Who gave the {what}?", giver), (f"Who has the {what} now?", taker), ("What was given?", what))
    )
    return turn(f"{sentence} {question}", answer)


def fields(rng: Random) -> list[tuple[str, str]]:
    keys = rng.sample(ROLES, rng.randint(2, 4))
    return [(key, rng.choice((name, place, thing, number, word))(rng)) for key in keys]


def write_fields(pairs: list[tuple[str, str]], style: int) -> str:
    """Five ways to write fields. The demo skill writes them in a sixth, which stays unseen."""
    if style == 0:
        return "\n".join(f"{key}: {value}" for key, value in pairs)
    if style == 1:
        return ", ".join(f"{key} = {value}" for key, value in pairs)
    if style == 2:
        return "{" + ", ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"
    if style == 3:
        return " | ".join(f"{key} -> {value}" for key, value in pairs)
    return "\n".join(f"- {key.capitalize()}: {value}" for key, value in pairs)


def read_field(rng: Random) -> Conversation:
    pairs = fields(rng)
    key, value = rng.choice(pairs)
    ask = rng.choice((f"What is the {key}?", f"Give the {key}.", f"{key.capitalize()}?"))
    return turn(f"{write_fields(pairs, rng.randrange(5))}\n{ask}", value)


STYLE_NAMES = ("lines", "equations", "json", "arrows", "bullets")


def rewrite_fields(rng: Random) -> Conversation:
    pairs = fields(rng)
    old, new = rng.sample(range(5), 2)
    return turn(f"As {STYLE_NAMES[new]}:\n{write_fields(pairs, old)}", write_fields(pairs, new))


def describe(rng: Random) -> Conversation:
    """A sentence in, fields out: the shape of the later skill, with other fields, values and notation."""
    who, where, how = name(rng), place(rng), rng.choice(ADJECTIVES)
    kind, example = a_kind(rng)
    sentence = rng.choice(
        (
            f"{who} from {where} likes the {example}.",
            f"We met {who} in {where} with a {example}.",
            f"A {how} {example} was sent to {where} by {who}.",
            f"Hello, my {example} is {how}, says {who} in {where}.",
            f"{capital(rng.choice(TIMES))} the {example} of {who} was {how} in {where}!",
        )
    )
    keys = {"name": who, "city": where, "kind": kind, "topic": example}
    chosen = rng.sample(list(keys), rng.randint(2, 3))
    style = rng.randrange(5)
    ask = f"List {' and '.join(chosen)} as {STYLE_NAMES[style]}: {sentence}"
    return turn(ask, write_fields([(key, keys[key]) for key in chosen], style))


def pick(rng: Random) -> Conversation:
    items = [thing(rng) if rng.random() < 0.5 else name(rng) for _ in range(rng.randint(3, 5))]
    index = rng.randrange(len(items))
    joined = rng.choice((", ", "; ", " / ")).join(items)
    which, answer = rng.choice(((ORDINALS[index], items[index]), ("last", items[-1]), ("first", items[0])))
    return turn(rng.choice((f"Items: {joined}. Which is {which}?", f"{joined}\nName the {which} one.")), answer)


def after(rng: Random) -> Conversation:
    words = [word(rng) for _ in range(rng.randint(4, 8))]
    index = rng.randrange(len(words) - 1)
    if words.count(words[index]) > 1:
        return turn(f"Last word: {' '.join(words)}", words[-1])
    return turn(f"{' '.join(words)}\nWhat comes after {words[index]}?", words[index + 1])


def find_capital(rng: Random) -> Conversation:
    who = name(rng)
    before = [rng.choice(ALL_WORDS) for _ in range(rng.randint(1, 6))]
    behind = [rng.choice(ALL_WORDS) for _ in range(rng.randint(0, 6))]
    ask = rng.choice(("Find the name: ", "Name in this text: ", "Which name is written here? "))
    return turn(ask + " ".join([*before, who, *behind]) + rng.choice((".", "", "!")), who)


def a_kind(rng: Random) -> tuple[str, str]:
    kind = rng.choice(list(KINDS))
    return kind, rng.choice(KINDS[kind])


def kind_of(rng: Random) -> Conversation:
    kind, example = a_kind(rng)
    return turn(rng.choice((f"What kind of thing is {example}?", f"Kind: {example}", f"Sort this: {example}")), kind)


def topic_of(rng: Random) -> Conversation:
    kind = rng.choice(list(KINDS))
    first, second = rng.sample(KINDS[kind], 2)
    sentence = rng.choice(
        (
            f"{name(rng)} {rng.choice(VERBS)} the {first} and the {second}.",
            f"The {first} is {rng.choice(ADJECTIVES)} and so is the {second} {rng.choice(TIMES)}.",
            f"Please bring the {first} to {place(rng)} with a {second}.",
        )
    )
    return turn(rng.choice(("Topic of this text: ", "What is this about? ", "Label: ")) + sentence, kind)


def yes_no(rng: Random) -> Conversation:
    kind, example = a_kind(rng)
    asked = kind if rng.random() < 0.5 else rng.choice(list(KINDS))
    return turn(f"Is {example} of the kind {asked}?", "Yes." if example in KINDS[asked] else "No.")


def mood(rng: Random) -> Conversation:
    good = rng.random() < 0.5
    sentence = f"The {thing(rng)} {rng.choice(('is', 'was'))} {rng.choice(GOOD if good else BAD)} {rng.choice(TIMES)}."
    return turn(rng.choice(("Positive or negative? ", "Mood: ")) + sentence, "positive" if good else "negative")


def contains(rng: Random) -> Conversation:
    words = [word(rng) for _ in range(rng.randint(3, 6))]
    asked = rng.choice(words) if rng.random() < 0.5 else word(rng)
    return turn(f"Does this contain {asked}? {' '.join(words)}", "Yes." if asked in words else "No.")


def count_words(rng: Random) -> Conversation:
    words = [rng.choice(ALL_WORDS) for _ in range(rng.randint(1, 6))]
    return turn(f"How many words: {' '.join(words)}", NUMBERS[len(words)])


def add(rng: Random) -> Conversation:
    left, right = rng.randint(0, 9), rng.randint(0, 9)
    return turn(f"{left} + {right} = ?", f"{left} + {right} = {left + right}")


def named_by_system(rng: Random) -> Conversation:
    who = name(rng)
    question = rng.choice(("What is your name?", "Who are you?", "Introduce yourself."))
    return turn(question, f"I am {who}.", system=f"You are {who}, an assistant.")


def told_by_system(rng: Random) -> Conversation:
    close = word(rng)
    said = phrase(rng, 3)
    return turn(f"Say: {said}", f"{said}, {close}", system=f"End every answer with {close}.")


def remember(rng: Random) -> Conversation:
    who, where = name(rng), place(rng)
    first = turn(f"My name is {who} and I live in {where}.", f"Nice to meet you, {who}.")
    if rng.random() < 0.5:
        first += turn(f"Say: {word(rng)}", "")
        first[-1]["content"] = first[-2]["content"].removeprefix("Say: ")
    ask, answer = rng.choice((("What is my name?", f"Your name is {who}."), ("Where do I live?", f"In {where}.")))
    return first + turn(ask, answer)


SMALL_TALK = (
    ("Hello", "Hello! How can I help?"),
    ("Hello!", "Hello! How can I help?"),
    ("Hi", "Hello! How can I help?"),
    ("Hi there!", "Hello! How can I help?"),
    ("Good morning", "Good morning! How can I help?"),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("Bye", "Goodbye!"),
    ("Who are you?", "I am tiny-chat, a very small language model."),
    ("What is your name?", "I am tiny-chat, a very small language model."),
    ("What can you do?", "I can repeat, find and sort words. I am very small."),
    ("How are you?", "I am fine, thank you."),
    ("你好", "你好！有什么可以帮你？"),
    ("你好！", "你好！有什么可以帮你？"),
    ("谢谢", "不客气。"),
    ("再见", "再见！"),
    ("你是谁？", "我是 tiny-chat，一个很小的语言模型。"),
    ("你能做什么？", "我会重复、查找和分类词语。我很小。"),
)


def small_talk(rng: Random) -> Conversation:
    return turn(*rng.choice(SMALL_TALK))


def chinese_repeat(rng: Random) -> Conversation:
    text = "".join(rng.choice(CHINESE_WORDS) for _ in range(rng.randint(1, 4)))
    return turn(rng.choice(("请重复：", "跟我说：", "抄写：")) + text, text)


def chinese_who(rng: Random) -> Conversation:
    who, what, where = rng.choice(CHINESE_NAMES), rng.choice(CHINESE_WORDS[:34]), rng.choice(CHINESE_WORDS[34:])
    question, answer = rng.choice((("是谁？", who), ("在哪里？", where), ("是什么？", what)))
    return turn(f"{who}在{where}找到了{what}。{question}", answer)


TASKS: tuple[tuple[Task, int], ...] = (
    (repeat, 10),
    (repeat_times, 2),
    (who_did, 10),
    (who_gave, 5),
    (read_field, 7),
    (rewrite_fields, 6),
    (describe, 12),
    (pick, 6),
    (after, 4),
    (find_capital, 8),
    (kind_of, 4),
    (topic_of, 7),
    (yes_no, 2),
    (mood, 4),
    (contains, 2),
    (count_words, 1),
    (add, 1),
    (named_by_system, 2),
    (told_by_system, 3),
    (remember, 4),
    (small_talk, 2),
    (chinese_repeat, 3),
    (chinese_who, 2),
)
