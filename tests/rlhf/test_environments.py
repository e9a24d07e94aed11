"""Conversations with environments: every token stays what it was, and what they say is not learned."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmscale.config.problems import InputError
from llmscale.config.rlhf_environment import EnvironmentSection, environment_problems
from llmscale.config.rlhf_rewards import WorkerSection
from llmscale.config.tuning import SftSection
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.prompt_records import Prompt
from llmscale.data.tokenizer import open_encoder
from llmscale.rlhf.conversations.continuation import Continuation
from llmscale.rlhf.conversations.environments import Episode, MultiTurn, record_of, setup_problems
from llmscale.rlhf.conversations.guess_number import GuessNumber
from tests.rlhf.chat_tokenizer import make_chat_tokenizer

ODD = "tests.rlhf.odd_environments"
LONG = 2000
TEMPLATES = ("plain", "chatml", "llama3", "zephyr")


@dataclass(frozen=True)
class Written:
    """What a rollout engine gives."""

    tokens: Sequence[int]
    log_probabilities: Sequence[float]
    finished: bool


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_tokenizer(tmp_path_factory.mktemp("tokenizer") / "chat")


@pytest.fixture
def open_game(tokenizer: Path) -> Iterator[Callable[..., MultiTurn]]:
    """Opens games, and closes them after the test."""
    opened: list[MultiTurn] = []

    def open_one(
        environment: str, template: str = "chatml", longest: int = LONG, **options: Any
    ) -> MultiTurn:
        section = EnvironmentSection(environment=environment, **options)
        opened.append(MultiTurn(section, encoder_of(tokenizer, template), longest))
        return opened[-1]

    yield open_one
    for game in opened:
        game.close()


def encoder_of(tokenizer: Path, template: str) -> ChatEncoder:
    return ChatEncoder(tokenizer, SftSection(chat_template=template), LONG)


def end_of(encoder: ChatEncoder) -> int:
    """What the template ends an answer with."""
    return next(iter(encoder.stops - {encoder.end_of_text}), encoder.end_of_text)


def written(encoder: ChatEncoder, text: str, finished: bool = True) -> Written:
    """The answer as a model writes it that knows the template."""
    tokens = [*encoder.plain(text), *([end_of(encoder)] if finished else [])]
    return Written(tokens, [-0.5 - place for place in range(len(tokens))], finished)


def say(game: MultiTurn, encoder: ChatEncoder, episodes: Sequence[Episode], *texts: str) -> None:
    game.advance(episodes, [written(encoder, text) for text in texts])


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_tokens_are_those_of_the_whole_conversation(
    tokenizer: Path, open_game: Callable[..., MultiTurn], template: str
) -> None:
    """Where the model writes as the template does, the rendering is token for token the same."""
    game, encoder = open_game(f"{ODD}:Obedient", template), encoder_of(tokenizer, template)
    [episode] = game.begin([("line 1", {})])
    lead = " " if template == "plain" else ""
    for text in ("one", "two words", "three"):
        say(game, encoder, [episode], lead + text)
    assert episode.error is None
    assert episode.tokens == encoder.prompt(episode.messages)
    assert [message["role"] for message in episode.messages] == ["system", "user"] + ["assistant", "user"] * 3


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("seed", range(5))
def test_what_was_written_is_never_tokenised_again(
    tokenizer: Path, open_game: Callable[..., MultiTurn], template: str, seed: int
) -> None:
    """Tokens at random, which no tokenizer would make of their text, cut or ended by any stop."""
    chance = random.Random(seed)
    game, encoder = open_game(f"{ODD}:Obedient", template, turns=4), encoder_of(tokenizer, template)
    words = range(10, open_encoder(tokenizer).get_vocab_size(with_added_tokens=False))
    [episode] = game.begin([("line 1", {})])
    prompt = list(episode.tokens)
    answers: list[Written] = []
    while not episode.is_done:
        finished = chance.random() < 0.5
        tokens = chance.choices(words, k=chance.randrange(1, 12))
        tokens += [chance.choice(sorted(encoder.stops))] if finished else []
        answers.append(Written(tokens, [-chance.random() for _ in tokens], finished))
        game.advance([episode], answers[-1:])
    assert episode.error is None
    assert episode.tokens[: episode.prompt_tokens] == prompt
    assert [episode.tokens[turn.first : turn.stop] for turn in episode.turns] == [
        [*answer.tokens] for answer in answers
    ]
    assert [turn.finished for turn in episode.turns] == [answer.finished for answer in answers]
    learned = [False] * len(episode.tokens)
    for turn, answer in zip(episode.turns, answers):
        learned[turn.first : turn.stop] = [True] * len(answer.tokens)
        assert episode.log_probabilities[turn.first : turn.stop] == answer.log_probabilities
    assert episode.learned == learned
    assert all(value == 0 for value, own in zip(episode.log_probabilities, learned) if not own)
    # An answer is the last thing: what nobody will answer is not asked.
    assert episode.turns[-1].stop == len(episode.tokens)


def test_a_cut_answer_is_ended_by_the_template_and_not_by_the_model(
    tokenizer: Path, open_game: Callable[..., MultiTurn]
) -> None:
    game, encoder = open_game(f"{ODD}:Obedient"), encoder_of(tokenizer, "chatml")
    [cut, ended] = game.begin([("line 1", {}), ("line 2", {})])
    game.advance([cut, ended], [written(encoder, "one", finished=False), written(encoder, "one")])
    assert cut.tokens == ended.tokens
    assert sum(cut.learned) == sum(ended.learned) - 1


def test_rewards_are_of_turns_and_an_episode_ends_in_three_ways(
    tokenizer: Path, open_game: Callable[..., MultiTurn]
) -> None:
    encoder = encoder_of(tokenizer, "chatml")
    game = open_game(f"{ODD}:Obedient", turns=3)
    [ends, wanders] = game.begin([("line 1", {}), ("line 2", {})])
    say(game, encoder, [ends, wanders], "a", "a")
    say(game, encoder, [ends, wanders], "end", "b")
    assert (ends.is_done, ends.is_cut, ends.reward) == (True, False, 1.25)
    say(game, encoder, [wanders], "c")
    assert (wanders.is_done, wanders.is_cut, wanders.reward) == (True, True, 0.75)
    assert [turn.reward for turn in ends.turns] == [0.25, 1.0]
    short = open_game(f"{ODD}:Obedient", longest=ends.prompt_tokens + 20)
    [episode] = short.begin([("line 1", {})])
    say(short, encoder, [episode], "a")
    assert (episode.is_done, episode.is_cut, len(episode.turns)) == (True, True, 1)
    with pytest.raises(ValueError, match="line 1 is done"):
        say(short, encoder, [episode], "a")


def test_faults_of_environments_cost_their_own_conversation(
    tokenizer: Path, open_game: Callable[..., MultiTurn]
) -> None:
    encoder = encoder_of(tokenizer, "chatml")
    game = open_game(f"{ODD}:Obedient", step_seconds=0.3)
    records = [(f"line {line}", {"bad": line == 1}) for line in range(1, 6)]
    [bad, *others] = episodes = game.begin(records)
    assert bad.error == "line 1: reset raised ValueError: a bad record"
    say(game, encoder, others, "hang", "odd", "silent", "fine")
    assert [episode.error for episode in episodes[1:4]] == [
        "line 2: step raised TimeoutError: took longer than 0.3 seconds",
        "line 3: step raised ValueError: the reward 'a lot' is no number",
        "line 4: step raised ValueError: it is not done, and returned no message that could be answered",
    ]
    assert (others[-1].error, others[-1].reward) == (None, 0.25)
    say(game, encoder, others[-1:], "end")
    assert (others[-1].error, others[-1].reward) == (None, 1.25)


def test_environments_that_die_together_are_told_and_new_ones_live(
    tokenizer: Path, open_game: Callable[..., MultiTurn]
) -> None:
    encoder = encoder_of(tokenizer, "chatml")
    game = open_game(f"{ODD}:Obedient")
    episodes = game.begin([("line 1", {}), ("line 2", {}), ("line 3", {})])
    say(game, encoder, episodes[:2], "die", "a")
    assert all("ended the process with exit code 1" in (one.error or "") for one in episodes[:2])
    say(game, encoder, episodes[2:], "a")
    assert "the environment is gone" in (episodes[2].error or "")
    [fresh] = game.begin([("line 4", {})])
    say(game, encoder, [fresh], "end")
    assert (fresh.error, fresh.reward) == (None, 1.0)


def test_rollouts_at_the_same_time_do_not_meet(tokenizer: Path, open_game: Callable[..., MultiTurn]) -> None:
    """Two threads play on the same environments; each conversation counts its own turns."""
    encoder = encoder_of(tokenizer, "chatml")
    game = open_game(f"{ODD}:Obedient", turns=3, worker=WorkerSection(count=2))
    found: dict[str, list[Episode]] = {}

    def roll_out(name: str) -> None:
        episodes = game.begin([(f"{name} {line}", {}) for line in range(4)])
        game.play(episodes, lambda texts: [written(encoder, name) for _ in texts])
        found[name] = episodes

    threads = [threading.Thread(target=roll_out, args=(name,)) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, episodes in found.items():
        assert [episode.error for episode in episodes] == [None] * 4
        for episode in episodes:
            said = [message["content"] for message in episode.messages if message["role"] == "user"]
            assert said == ["Begin.", *(f"That was {name!r}, number {turn}." for turn in (1, 2))]


def test_a_number_is_found_by_its_hints(tokenizer: Path, open_game: Callable[..., MultiTurn]) -> None:
    """Halving wins; always the same guess does not."""
    encoder = encoder_of(tokenizer, "chatml")
    game = open_game("guess_number", turns=10)
    chance = random.Random(0)
    secrets = [chance.randint(1, 100) for _ in range(6)]
    episodes = game.begin([(f"line {secret}", {"secret": secret}) for secret in secrets])
    ranges = {episode.number: (1, 100) for episode in episodes}
    while waiting := [episode for episode in episodes if not episode.is_done]:
        for episode in waiting:
            low, high = ranges[episode.number]
            guess = (low + high) // 2
            say(game, encoder, [episode], str(guess))
            hint = episode.messages[-1]["content"]
            ranges[episode.number] = (guess + 1, high) if hint == "Higher." else (low, guess - 1)
    assert [episode.is_cut for episode in episodes] == [False] * 6
    assert all(episode.reward >= 0.4 for episode in episodes)
    [stubborn] = game.begin([("line 1", {"secret": 7})])
    game.play([stubborn], lambda texts: [written(encoder, "50") for _ in texts])
    assert (stubborn.is_cut, stubborn.reward) == (True, 0.0)


def test_a_record_is_its_fields_and_what_its_prompt_says() -> None:
    said = {"role": "user", "content": "Guess."}
    for prompt in (
        Prompt("Guess.", (1,), "line 2", {"secret": 7}),
        Prompt((said,), (1,), "line 2", {"secret": 7}),
    ):
        assert record_of(prompt) == ("line 2", {"secret": 7, "messages": [said]})


def test_several_guesses_at_once_are_none() -> None:
    game = GuessNumber()
    game.reset({"secret": 5, "high": 9})
    for said in ("1 2 3 4 5", "5 or 6", "", "five", "5" * 50):
        assert game.step(said) == (
            [{"role": "user", "content": "Say a number and nothing else."}],
            0.0,
            False,
        )
    assert game.step("5.") == ([], pytest.approx(0.5), True)


THINKLESS = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content if loop.last else message.content.split("</think>")[-1] -}}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
COUNTING = "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
SHOUTING = "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (THINKLESS, "is written otherwise once more is said"),
        (COUNTING, "what stands before an answer is written otherwise once that is there"),
        (SHOUTING, "an answer is not written once, as it is"),
        (THINKING, "'<think></think>' is written before an answer"),
    ],
)
def test_templates_that_change_what_was_said_are_refused(
    tokenizer: Path, tmp_path: Path, source: str, words: str
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(source)
    with pytest.raises(InputError) as caught:
        Continuation(encoder_of(tokenizer, str(file)))
    [problem] = caught.value.problems
    assert words in problem.message
    assert "such as chatml" in problem.message


def test_sections_and_classes_are_checked_before_anything_starts() -> None:
    assert [*environment_problems(EnvironmentSection(environment="guess_number"))] == []
    [problem] = environment_problems(EnvironmentSection(environment="gues_number"))
    assert "is none of guess_number" in problem.message
    assert [*setup_problems(EnvironmentSection(environment="guess_number"))] == []
    for environment, words in (
        (f"{ODD}:WithoutStep", "it has no step"),
        (f"{ODD}:Nobody", "AttributeError"),
        ("no.such:Game", "ModuleNotFoundError"),
    ):
        [problem] = setup_problems(EnvironmentSection(environment=environment))
        assert words in problem.message
