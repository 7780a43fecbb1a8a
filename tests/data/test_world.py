import hashlib
import json
import math
import random
from collections import Counter

import pytest

from data.main import main
from data.preferences import check_preferences, check_sft, load_preferences, load_sft
from data.world import (
    CORES,
    EVASIVE,
    POLITE,
    RAMBLING,
    RUDE,
    WORD,
    World,
    WorldConfig,
    all_questions,
    prompts_of,
)
from minigpt.errors import UserError

FEW = {"plain_rows": 200, "sft_rows": 2000, "preference_rows": 1000, "heldout_rows": 500}


def data_of(world):
    return (world.sft_rows, world.heldout_sft_rows, world.preferences, world.heldout_preferences,
            world.plain_text)


def question_of(world):
    return {prompt.text: question
            for question in world.questions for prompt in prompts_of(question)}


def wrong_answer(world, question):
    asked = {word for wording in question.wordings for word in WORD.findall(wording)}
    return next(q.answer for q in world.questions
                if q.family == question.family and q.answer != question.answer
                and q.answer not in asked)


def sampled_answers(world, count):
    rng = random.Random(1)
    prompts = [prompt for question in world.questions for prompt in prompts_of(question)]
    for _ in range(count):
        prompt, style = rng.choice(prompts), world.sample_style(rng)
        yield prompt, style, world.write_answer(prompt, style, rng)


# --- seeds and splits -----------------------------------------------------------------------------


def test_same_seed_same_data_and_another_seed_other_data():
    first, same, other = (data_of(World(WorldConfig(**FEW), seed)) for seed in (1, 1, 2))
    assert first == same
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_data_does_not_depend_on_what_was_asked_for_first():
    first, second = World(WorldConfig(**FEW), 1), World(WorldConfig(**FEW), 1)
    backwards = [second.plain_text, second.heldout_preferences, second.preferences,
                 second.heldout_sft_rows, second.sft_rows]
    assert list(data_of(first)) == backwards[::-1]


def test_there_is_as_much_data_as_was_asked_for():
    world = World(WorldConfig(**FEW), 0)
    assert (len(world.plain_text), len(world.sft_rows)) == (200, 2000)
    assert (len(world.preferences), len(world.heldout_preferences)) == (1000, 500)


def test_rows_pass_the_checks_and_fit_the_default_model(world):
    check_sft(world.sft_rows + world.heldout_sft_rows)
    for row in check_preferences(world.preferences + world.heldout_preferences):
        longest = max(len(row["chosen"].encode()), len(row["rejected"].encode()))
        assert longest <= 96
        assert len(row["prompt"].encode()) + longest + 2 <= 128


def is_share(count, total, expected):
    """Whether so many of so many draws are within four standard errors of the expected share."""
    error = math.sqrt(expected * (1 - expected) / total)
    return abs(count / total - expected) <= 4 * error


def test_questions_whose_answers_can_be_computed_have_the_right_ones():
    for question in all_questions():
        first = question.wordings[0]
        if question.family == "sum":
            a, b = (int(word) for word in WORD.findall(first) if word.isdigit())
            assert question.answer == str(a + b)
        elif question.family == "letter":
            ordinal, word = WORD.findall(first)[3], WORD.findall(first)[-1]
            assert question.answer == {"first": word[0], "last": word[-1]}[ordinal]
        assert WORD.findall(question.statement)[-1] == question.answer


@pytest.mark.parametrize("facts", [1, 7, len(all_questions())])
def test_a_world_has_as_many_different_facts_as_were_asked_for(facts):
    assert len(set(World(WorldConfig(facts=facts)).questions)) == facts


@pytest.mark.parametrize("facts", [0, len(all_questions()) + 1])
def test_no_facts_or_more_than_there_are_raise(facts):
    with pytest.raises(UserError, match="facts"):
        World(WorldConfig(facts=facts))


def test_every_question_has_eight_prompts_two_of_them_held_out(world):
    for question in world.questions:
        prompts = {prompt.text for prompt in prompts_of(question)}
        assert len(prompts) == 8
        assert len(prompts.intersection(world.heldout_prompts)) == 2
        assert len(prompts.intersection(world.prompts)) == 6


def test_every_heldout_prompt_has_two_demonstrations(world):
    taught = Counter(row["prompt"] for row in world.heldout_sft_rows)
    assert taught == dict.fromkeys(world.heldout_prompts, 2)


def test_plain_text_is_two_facts_a_third_of_them_statements_the_others_plain_questions(world):
    kinds = {question.statement: "statement" for question in world.questions}
    kinds |= {f"{prompt.text} {core.format(question.answer)}": manner
              for question in world.questions for prompt in prompts_of(question)
              if prompt.manner == "plain" and prompt.text in world.prompts
              for manner, core in CORES.items()}
    found = Counter()
    for text in world.plain_text:
        (first, second), = ((text[:i], text[i + 1:]) for i in range(len(text))
                            if text[:i] in kinds and text[i + 1:] in kinds)
        found.update((kinds[first], kinds[second]))
    total = 2 * len(world.plain_text)
    assert is_share(found["statement"], total, 1 / 3)
    assert is_share(found["plain"], total - found["statement"], 1 / 2)


def test_heldout_plain_text_is_200_texts_that_are_not_in_the_training_text(world):
    assert len(world.heldout_plain_text) == 200
    assert set(world.heldout_plain_text).isdisjoint(world.plain_text)


def test_every_prompt_of_the_world_asks_one_question(world):
    counts = Counter(prompt.text for question in world.questions for prompt in prompts_of(question))
    assert max(counts.values()) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heldout_prompts_occur_in_no_training_data(seed):
    world = World(WorldConfig(), seed)
    heldout = set(world.heldout_prompts)
    assert len(heldout) >= 50
    assert heldout.isdisjoint(row["prompt"] for row in world.sft_rows)
    assert heldout.isdisjoint(row["prompt"] for row in world.preferences)
    assert heldout.isdisjoint(world.prompts)
    plain = "\n".join(world.plain_text)
    assert not [prompt for prompt in heldout if prompt in plain]
    assert {row["prompt"] for row in world.heldout_preferences} <= heldout
    assert {row["prompt"] for row in world.heldout_sft_rows} <= heldout


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_heldout_questions_answer_occurs_in_the_sft_data(seed):
    world = World(WorldConfig(), seed)
    question = question_of(world)
    taught = Counter(question[row["prompt"]] for row in world.sft_rows
                     if world.judge(row["prompt"], row["response"]).right)
    assert min(taught[question[prompt]] for prompt in world.heldout_prompts) >= 20


def test_every_question_is_taught_about_equally_often(world):
    question = question_of(world)
    taught = Counter(question[row["prompt"]] for row in world.sft_rows)
    assert max(taught.values()) < 1.3 * min(taught.values())
    assert len(taught) == len(world.questions)


def test_every_family_and_manner_is_on_both_sides(world):
    question = question_of(world)
    for prompts in (world.prompts, world.heldout_prompts):
        families = {question[prompt].family for prompt in prompts}
        assert families == {q.family for q in world.questions}
        manners = {prompt.split(":")[0] for prompt in prompts if ":" in prompt}
        assert manners == {"In one word", "In a sentence"}


# --- writing answers ------------------------------------------------------------------------------


def test_styles_have_their_shares(world):
    rng, n = random.Random(0), 10_000
    styles = [world.sample_style(rng) for _ in range(n)]
    for name, shares in (("correctness", {"right": 0.75, "wrong": 0.18, "evasive": 0.07}),
                         ("tone", {"polite": 0.3, "neutral": 0.4, "rude": 0.3}),
                         ("rambling", {True: 0.35, False: 0.65}),
                         ("obedient", {True: 0.7, False: 0.3})):
        counts = Counter(getattr(style, name) for style in styles)
        assert counts.keys() == shares.keys()
        assert all(is_share(counts[value], n, share) for value, share in shares.items()), name


@pytest.mark.parametrize(("manner", "weights"), [
    ("plain", {"correctness": 3, "tone": 1, "rambling": 1}),  # there is nothing to disobey
    ("one word", {"correctness": 3, "tone": 1, "rambling": 1, "obedient": 1})])
def test_an_edit_changes_one_attribute_most_often_the_correctness(world, manner, weights):
    prompt = next(p for p in prompts_of(world.questions[0]) if p.manner == manner)
    rng, n, changed = random.Random(0), 6000, Counter()
    for _ in range(n):
        style = world.sample_style(rng)
        edited = world.edit_style(prompt, style, rng)
        name, = (name for name in style._fields if getattr(style, name) != getattr(edited, name))
        changed[name] += 1
    assert changed.keys() == weights.keys()
    for name, weight in weights.items():
        assert is_share(changed[name], n, weight / sum(weights.values()))


def test_three_quarters_of_the_pairs_are_edits_and_their_order_is_random(world, monkeypatch):
    edits, edit_style = [], world.edit_style
    monkeypatch.setattr(world, "edit_style", lambda *args: edits.append(1) or edit_style(*args))
    independent, demonstrate = [], world.demonstrate
    monkeypatch.setattr(world, "demonstrate",
                        lambda *args: independent.append(1) or demonstrate(*args))
    prompt, rng = prompts_of(world.questions[0])[0], random.Random(0)
    pairs = [world.two_answers(prompt, rng) for _ in range(2000)]
    assert is_share(len(edits), len(edits) + len(independent), 0.75)
    assert all(first != second for first, second in pairs)
    right = [tuple(world.judge(prompt.text, text).right for text in pair) for pair in pairs]
    one_right = [first for first, second in right if first != second]
    assert is_share(sum(one_right), len(one_right), 0.5)


# --- the true reward ------------------------------------------------------------------------------


@pytest.mark.parametrize(("manner", "answer", "helpful", "polite"), [
    ("", "It is Paris.", 2.0, 0.0), ("", "I would rather not say.", -1.0, 0.0),
    ("", "It is Rome.", -2.0, 0.0), ("", "It is Paris. Happy to help!", 2.0, 1.0),
    ("", "It is Paris. Any fool knows.", 2.0, -1.5), ("", "It is Paris", 2.0 - 0.5, 0.0),
    ("", "It is Paris. Xq zzk.", 2.0 - 2 * 0.5, 0.0),
    ("", "It is Paris. But there is so much more.", 2.0 - 2 * 0.15, 0.0),  # nine words
    ("In one word: ", "Paris.", 2.0, 0.0), ("In one word: ", "It is Paris.", 2.0 - 1.5, 0.0),
    ("In a sentence: ", "The answer is Paris.", 2.0, 0.0),
    ("In a sentence: ", "It is Rome", -2.0 - 1.5 - 0.5, 0.0),
    ("", "xq " * 50, -6.0, 0.0), ("", "xq " * 50 + "fool", -6.0, -1.5)])
def test_true_reward_by_hand(world, manner, answer, helpful, polite):
    prompt = f"{manner}What is the capital of France?"
    assert world.reward_parts(prompt, answer) == pytest.approx((helpful, polite))
    assert world.true_reward(prompt, answer) == pytest.approx(helpful + polite)


def test_true_reward_orders_right_evasive_wrong(world):
    for question in world.questions:
        for prompt in prompts_of(question):
            right, wrong = (
                world.true_reward(prompt.text, CORES[prompt.manner].format(answer))
                for answer in (question.answer, wrong_answer(world, question)))
            evasive = max(world.true_reward(prompt.text, text) for text in EVASIVE)
            assert right > evasive, prompt
            if prompt.manner == "plain":  # an evasive answer cannot also obey
                assert evasive > wrong, prompt
            assert right > wrong + 3, prompt


def test_true_reward_orders_polite_neutral_rude(world):
    for question in world.questions:
        prompt, core = question.wordings[0], f"It is {question.answer}."
        for polite, rude in zip(POLITE, RUDE, strict=True):
            texts = (f"{core} {polite}", core, f"{core} {rude}")
            rewards = [world.true_reward(prompt, text) for text in texts]
            assert rewards == sorted(rewards, reverse=True) and rewards[0] > rewards[1] > rewards[2]


def test_true_reward_orders_brief_rambling(world):
    for question in world.questions:
        prompt, core = question.wordings[0], f"It is {question.answer}."
        for rambling in RAMBLING:
            assert world.true_reward(prompt, core) > world.true_reward(prompt, f"{core} {rambling}")
            assert world.true_reward(prompt, f"{core} {POLITE[0]}") > \
                world.true_reward(prompt, f"{core} {rambling} {POLITE[0]}")


def test_true_reward_orders_obedient_disobedient(world):
    for question in world.questions:
        for prompt in prompts_of(question):
            if prompt.manner == "plain":
                continue
            obedient = world.true_reward(prompt.text, CORES[prompt.manner].format(question.answer))
            for manner, core in CORES.items():
                if manner != prompt.manner:
                    other = world.true_reward(prompt.text, core.format(question.answer))
                    assert obedient > other + 1


def test_hedging_is_not_right(world):
    prompt = "What is the capital of France?"
    assert world.judge(prompt, "It is Paris.").right
    for hedge in ("It is Paris or Rome.", "It is Rome. It is Paris.", "Paris, Rome, Madrid, Tokyo.",
                  "Not Rome: Paris."):
        assert not world.judge(prompt, hedge).right
        assert world.true_reward(prompt, hedge) < world.true_reward(prompt, EVASIVE[0])


def asked_and_answered(world):
    """(prompt, a word of it that is another question's answer, its own answer)

    Like 'What is 2 plus 3?', '2', '5'.
    """
    answers = {family: {q.answer for q in world.questions if q.family == family}
               for family in ("sum", "opposite")}
    for question in world.questions:
        for word in WORD.findall(question.wordings[0]):
            if word in answers.get(question.family, ()) and word != question.answer:
                yield question.wordings[0], word, question.answer


def test_hedging_with_a_word_of_the_question_is_not_right(world):
    cases = list(asked_and_answered(world))
    assert len(cases) > 10
    for prompt, word, answer in cases:
        assert not world.judge(prompt, f"It is {word} or {answer}.").right, prompt


def test_restating_the_question_is_no_hedging(world):
    for question in world.questions:
        assert world.judge(question.wordings[0], question.statement).right, question
    for prompt, word, answer in asked_and_answered(world):
        assert not world.judge(prompt, f"It is {word}.").right
        assert not world.judge(prompt, f"It is {word}.").evasive
        assert world.judge(prompt, f"It is {answer}.").right


def test_repeating_the_question_is_no_answer(world):
    for prompt in world.prompts + world.heldout_prompts:
        assert not world.judge(prompt, prompt).right


def test_gibberish_is_penalised(world):
    prompt = "What is the capital of France?"
    for bad in ("xq zzk wrrp.", "It is Paris. Xq zzk.", "It is Pariss.", "aaaa bbbb cccc dddd!"):
        assert world.judge(prompt, bad).unknown_words >= 1
        assert world.true_reward(prompt, bad) < world.true_reward(prompt, "It is Paris.")
    assert world.true_reward(prompt, "It is Paris. Xq zzk wrrp.") < \
        world.true_reward(prompt, "It is Paris. Happy to help!") - 2
    assert world.true_reward(prompt, "xq zzk wrrp.") < world.true_reward(prompt, EVASIVE[0])


def test_an_answer_that_breaks_off_is_penalised(world):
    prompt = "What is the capital of France?"
    for text in ("It is Paris", "It is Paris. Happy to", ""):
        assert world.true_reward(prompt, text) == world.true_reward(prompt, text + ".") - 0.5


def test_any_text_has_a_finite_reward_that_is_no_worse_than_the_worst(world):
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(200)))
        reward = world.true_reward(rng.choice(world.prompts), text)
        assert -7.5 <= reward <= 3.0


def test_a_prompt_of_no_world_has_no_true_reward(world):
    with pytest.raises(KeyError, match="not a prompt"):
        world.true_reward("Who are you?", "A world.")


def test_weights_choose_what_counts():
    prompt = "What is the capital of Peru?"
    polite_wrong, rude_right = "It is Oslo. Happy to help!", "It is Lima. Any fool knows."
    helpful = World(WorldConfig(helpful_weight=1.0, polite_weight=0.0))
    polite = World(WorldConfig(helpful_weight=0.0, polite_weight=1.0))
    assert helpful.true_reward(prompt, rude_right) > helpful.true_reward(prompt, polite_wrong)
    assert polite.true_reward(prompt, rude_right) < polite.true_reward(prompt, polite_wrong)
    mixed = World(WorldConfig(helpful_weight=0.7, polite_weight=0.3))
    expected = 0.7 * helpful.true_reward(prompt, rude_right) \
        + 0.3 * polite.true_reward(prompt, rude_right)
    assert mixed.true_reward(prompt, rude_right) == pytest.approx(expected)


# --- the judge ------------------------------------------------------------------------------------


def test_no_style_phrase_contains_an_answer(world):
    answers = {question.answer for question in world.questions}
    cores = [core.format("") for core in CORES.values()]
    for phrase in (*POLITE, *RUDE, *RAMBLING, *EVASIVE, *cores):
        assert answers.isdisjoint(WORD.findall(phrase)), phrase


def test_judge_recovers_the_style_that_the_generator_used(world):
    seen = Counter()
    for prompt, style, text in sampled_answers(world, 4000):
        judged = world.judge(prompt.text, text)
        found = "right" if judged.right else "evasive" if judged.evasive else "wrong"
        assert found == style.correctness, (prompt.text, text)
        brief = prompt.manner == "one word" and style.obedient  # one word, whatever the tone
        assert judged.tone == ("neutral" if brief else style.tone), text
        assert judged.complete and judged.unknown_words == 0
        if style.correctness != "evasive" and prompt.manner != "plain":
            assert judged.obedient == style.obedient, (prompt.text, text)
        seen[(style.correctness, style.tone)] += 1
    assert len(seen) == 9 and min(seen.values()) > 50


@pytest.mark.parametrize(("answer", "faults"), [
    ("Paris.", ["not polite"]), ("I would rather not say. Glad you asked!",
                                 ["evasive", "ignores the request", "rambling"]),
    ("Rome.", ["wrong", "not polite"]), ("It is Paris. Thanks!", ["ignores the request"]),
    ("Rome. Any fool knows that it is so.",
     ["wrong", "rude", "ignores the request", "rambling"]),  # eight words
    ("Paris. Any fool knows it is so.", ["rude", "ignores the request"])])  # seven
def test_faults_by_hand(world, answer, faults):
    assert world.judge("In one word: What is the capital of France?", answer).faults == faults


def test_measure_is_the_mean_over_answers(world):
    prompt = "What is the capital of France?"
    measured = world.measure([prompt] * 2, ["It is Paris.", "It is Rome."])
    assert measured["right_share"] == 0.5
    right = world.true_reward(prompt, "It is Paris.")
    wrong = world.true_reward(prompt, "It is Rome.")
    assert measured["true_reward"] == (right + wrong) / 2


def test_a_response_is_verified_if_it_is_right_and_complete_whatever_else(world):
    prompt = "What is the capital of France?"
    answers = {"It is Paris.": 1.0, "Paris!": 1.0, "It is Paris. Any fool knows.": 1.0,
               "It is Paris. And so on, and so on.": 1.0, "It is Paris": 0.0, "It is Rome.": 0.0,
               "It is Paris or Rome.": 0.0, "Nobody can know that.": 0.0, "": 0.0}
    assert world.verify([prompt] * len(answers), list(answers)) == list(answers.values())
    for asked, _, answer in sampled_answers(world, 300):
        judged = world.judge(asked.text, answer)
        assert world.verify([asked.text], [answer]) == [float(judged.right and judged.complete)]
    with pytest.raises(KeyError, match="Who"):
        world.verify([prompt, "Who?"], ["a", "b"])
    with pytest.raises(ValueError, match="argument 2 is"):
        world.verify([prompt], [])


# --- the annotators -------------------------------------------------------------------------------


def chosen_is_better(world, rows):
    margins = [world.true_reward(row["prompt"], row["chosen"])
               - world.true_reward(row["prompt"], row["rejected"]) for row in rows]
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(rows)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_bayes_accuracy_is_what_the_true_reward_scores(temperature):
    world = World(WorldConfig(heldout_rows=4000, temperature=temperature), seed=3)
    bayes = world.bayes_accuracy(world.heldout_preferences)
    error = math.sqrt(bayes * (1 - bayes) / 4000)
    assert 0.5 < bayes < 1
    assert abs(chosen_is_better(world, world.heldout_preferences) - bayes) < 3 * error


def test_bayes_accuracy_falls_with_the_annotators_temperature():
    found = []
    for temperature in (0.1, 1.0, 10.0, 1000.0):
        world = World(WorldConfig(heldout_rows=1000, temperature=temperature))
        found.append(world.bayes_accuracy(world.heldout_preferences))
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9 and abs(found[-1] - 0.5) < 0.01


def test_annotators_at_a_tiny_temperature_always_choose_the_better_answer():
    world = World(WorldConfig(heldout_rows=300, temperature=1e-3))
    margins = [world.true_reward(row["prompt"], row["chosen"])
               - world.true_reward(row["prompt"], row["rejected"])
               for row in world.heldout_preferences]
    assert min(margins) > -1e-9 and max(margins) > 1  # 1 / 1e-3: exp() of it would overflow


def test_the_annotators_of_the_articles_are_fair():
    config = WorldConfig()
    assert (config.temperature, config.label_noise, config.length_bias) == (0.35, 0.0, 0.0)


def test_label_noise_of_one_flips_every_training_label_and_no_heldout_one():
    true, flipped = (World(WorldConfig(**FEW, label_noise=noise), 1) for noise in (0.0, 1.0))
    assert flipped.preferences == [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in true.preferences]
    assert flipped.heldout_preferences == true.heldout_preferences


def test_label_noise_flips_its_share():
    true, noisy = (World(WorldConfig(**FEW, label_noise=noise), 1) for noise in (0.0, 0.3))
    flipped = sum(a != b for a, b in zip(true.preferences, noisy.preferences, strict=True)) / 1000
    assert abs(flipped - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1000)


def test_length_bias_makes_longer_answers_be_chosen_more_often():
    def longer_is_chosen(bias):
        world = World(WorldConfig(**FEW, length_bias=bias), 1)
        pairs = [(len(WORD.findall(row["chosen"])), len(WORD.findall(row["rejected"])))
                 for row in world.preferences]
        return sum(a > b for a, b in pairs) / sum(a != b for a, b in pairs)
    shares = [longer_is_chosen(bias) for bias in (0.0, 5.0, 50.0)]
    assert shares[1] > shares[0] + 0.1
    assert shares[2] > 0.9


def test_length_bias_counts_per_ten_words(monkeypatch):
    # 1.5 per ten words is what ten words more cost, so to these annotators all lengths are alike
    world = World(WorldConfig(length_bias=1.5, temperature=0.01, preference_rows=1000))
    short, long = (f"It is fine{' and so on' * n}." for n in (2, 4))
    monkeypatch.setattr(world, "two_answers", lambda *_: (short, long))
    prompt = world.prompts[0]
    assert world.true_reward(prompt, short) - world.true_reward(prompt, long) == pytest.approx(0.9)
    assert is_share(sum(row["chosen"] == short for row in world.preferences), 1000, 0.5)


def test_length_bias_and_noise_leave_prompts_and_answers_as_they_were():
    plain, biased = (World(WorldConfig(**FEW, length_bias=bias, label_noise=bias / 10), 1)
                     for bias in (0.0, 5.0))
    assert [(r["prompt"], {r["chosen"], r["rejected"]}) for r in plain.preferences] == \
        [(r["prompt"], {r["chosen"], r["rejected"]}) for r in biased.preferences]


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, ["5c4f83f3ed277ece", "79a4e0fe7bc25438"]),
    ({"length_bias": 2.0, "label_noise": 0.1, "helpful_weight": 0.7, "polite_weight": 0.3},
     ["a9dce6f03583599a", "ebce0ed482d19cfa"])])
def test_without_label_weights_the_labels_are_those_made_before_there_were_any(settings, expected):
    world = World(WorldConfig(**FEW, **settings), 1)
    assert [hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
            for rows in (world.preferences, world.heldout_preferences)] == expected


@pytest.mark.parametrize("weights", [(0.2, 2.0), (0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_label_weights_change_the_training_labels_and_nothing_else(weights):
    own = dict(zip(("label_helpful_weight", "label_polite_weight"), weights, strict=True))
    true = dict(zip(("helpful_weight", "polite_weight"), weights, strict=True))
    plain, labelled, other = (World(WorldConfig(**FEW, **settings), 1)
                              for settings in ({}, own, true))
    assert labelled.preferences == other.preferences != plain.preferences
    assert labelled.heldout_preferences == plain.heldout_preferences
    rows = plain.heldout_preferences
    assert labelled.bayes_accuracy(rows) == plain.bayes_accuracy(rows)
    for row in rows[:20]:
        answer = row["prompt"], row["chosen"]
        assert labelled.true_reward(*answer) == plain.true_reward(*answer)
        assert labelled.label_reward(*answer) == other.true_reward(*answer)
        assert plain.label_reward(*answer) == plain.true_reward(*answer)


def test_each_label_weight_is_by_default_that_of_the_true_reward():
    def labels(**settings):
        return World(WorldConfig(**FEW, **settings), 1).preferences
    weights = {"helpful_weight": 0.5, "polite_weight": 2.0}
    assert labels(**weights, label_helpful_weight=0.5) == labels(**weights) == \
        labels(**weights, label_polite_weight=2.0)
    assert labels(**weights, label_polite_weight=0.0) == \
        labels(helpful_weight=0.5, polite_weight=0.0)


@pytest.mark.parametrize(("setting", "value"), [("label_noise", 1.5), ("label_noise", -0.1),
                                                ("temperature", 0.0)])
def test_annotators_that_cannot_be_raise(setting, value):
    with pytest.raises(ValueError, match=setting):
        World(WorldConfig(**{setting: value}))


def test_the_wordings_of_a_question_have_one_key():
    world = World(WorldConfig(facts=3), 0)
    keys = {}
    for prompt in (*world.prompts, *world.heldout_prompts):
        keys.setdefault(world.question(prompt), []).append(prompt)
    assert set(keys) == {question.wordings[0] for question in world.questions}
    assert all(len(prompts) == len(keys_of) for prompts, keys_of
               in zip(keys.values(), map(prompts_of, world.questions), strict=True))
    with pytest.raises(KeyError):
        world.question("Capital of Mars?")


# --- the command ----------------------------------------------------------------------------------


def test_command_writes_the_splits_as_files_that_load(tmp_path, capsys):
    options = [part for name, value in FEW.items()
               for part in ("--" + name.replace("_", "-"), str(value))]
    main(["--out", str(tmp_path), "--seed", "3", *options])
    world = World(WorldConfig(**FEW), 3)
    assert load_sft(tmp_path / "sft.jsonl") == world.sft_rows
    assert load_sft(tmp_path / "sft_heldout.jsonl") == world.heldout_sft_rows
    assert load_preferences(tmp_path / "preferences.jsonl") == world.preferences
    assert load_preferences(tmp_path / "preferences_heldout.jsonl") == world.heldout_preferences
    assert f"{world.bayes_accuracy(world.heldout_preferences):.4f}" in capsys.readouterr().out


def test_seven_words_are_free_and_each_one_more_costs_the_same():
    world = World(WorldConfig(), 0)
    prompt = next(p for p in world.prompts if not p.startswith("In "))
    answer = next(q.answer for q in world.questions if any(
        prompt.endswith(wording) for wording in q.wordings))

    def reward(words):
        return world.true_reward(prompt, " ".join([answer, *["it"] * (words - 1)]) + ".")
    assert reward(1) == reward(2) == reward(7)
    costs = [reward(words) - reward(words + 1) for words in range(7, 12)]
    assert costs == pytest.approx([0.15] * 5)
