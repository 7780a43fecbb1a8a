import json
import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers")

from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from data.conversations import Message, as_prompt
from minigpt import EOS, PAD, SEP, decode, encode, generate, save_checkpoint
from minigpt.errors import UserError
from minigpt.examples import tokenize_example
from minigpt.export import SPECIAL_TOKENS, as_gpt2, byte_tokenizer, main
from reward import Ensemble

TOKENIZER = byte_tokenizer(64)
# Also what other tokenizers stumble over: GPT-2's letters for bytes, control characters, space, and
# our special tokens written as text.
TEXTS = st.lists(st.text() | st.sampled_from([*SPECIAL_TOKENS.values(), "ýþÿĠĀ", "\x00\r\n\t", "  ",
                                              " .", "e\u0301", "\ufeff", "日🙂"])).map("".join)
PAIRS = [{"prompt": "2+2= 1", "chosen": "5 is wrong", "rejected": "7"},
         {"prompt": "Say 'ca", "chosen": "n't'", "rejected": " t"},
         {"prompt": "A space follows: ", "chosen": " b", "rejected": "  c\n"},
         {"prompt": "e", "chosen": "\u0301t\u00e9", "rejected": "日🙂"}]


def exported(model, folder):
    """The folder that the command makes of this model, beside a run's files."""
    save_checkpoint(model, folder / "run" / "model.pt")
    (folder / "run" / "config.json").write_text(json.dumps({"lr": 1e-3, "data": None, "out": "x"}))
    (folder / "run" / "summary.json").write_text(json.dumps({"true_reward": 1.23456, "models": 2}))
    main([str(folder / "run" / "model.pt"), "--out", str(folder / "hf")])
    return str(folder / "hf")


@pytest.fixture(scope="module")
def trained(reciter, tmp_path_factory):
    return exported(reciter, tmp_path_factory.mktemp("trained"))


def message(role, text):
    return {"role": role, "content": text}


def as_messages(row):
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [message(role, row[name])] for name, role in roles.items()}


# --- the model ------------------------------------------------------------------------------------


@torch.no_grad()
def check_same_logits(ours, folder):
    token_ids = torch.randint(0, 256, (3, ours.max_seq_len))
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(theirs(token_ids).logits, ours(token_ids), atol=1e-5, rtol=1e-5)


def test_logits_are_those_of_the_model(make_model, tmp_path):
    model = make_model(spread=3.0, ff_dim=80)
    for parameter in model.parameters():  # norms and biases far from 1 and 0
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    check_same_logits(model, exported(model, tmp_path))


def test_logits_are_those_of_a_trained_model(reciter, trained):
    check_same_logits(reciter, trained)


def test_tied_weights_survive_training_a_save_and_a_load(trained, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(trained)
    before = model.lm_head.weight.clone()
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - it is no dictionary
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, before)


def test_gpt2_has_the_models_weights_and_attention_biases_of_zero(make_model):
    model = make_model()
    twin = as_gpt2(model)
    biases = [weight for name, weight in twin.named_parameters()
              if ".attn." in name and name.endswith("bias")]
    assert len(biases) == 2 * len(model.blocks) and not any(bias.any() for bias in biases)
    assert twin.num_parameters() - sum(map(torch.numel, biases)) == model.count_parameters()


# --- the tokenizer --------------------------------------------------------------------------------


@given(TEXTS)
def test_ids_are_the_bytes_of_any_text_and_text_comes_back(text):
    ids = TOKENIZER(text, split_special_tokens=True).input_ids
    assert ids == encode(text)
    assert TOKENIZER.decode(ids) == text


@given(TEXTS)
def test_special_tokens_in_a_text_are_read_as_such_and_come_back(text):
    parts = re.split("|".join(map(re.escape, SPECIAL_TOKENS.values())), text)
    found = re.findall("|".join(map(re.escape, SPECIAL_TOKENS.values())), text)
    names = {name: token for token, name in SPECIAL_TOKENS.items()}
    expected = encode(parts[0])
    for name, part in zip(found, parts[1:], strict=True):
        expected += [names[name], *encode(part)]
    ids = TOKENIZER(text).input_ids
    assert ids == expected
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "".join(parts)


@given(st.lists(st.sampled_from([*range(0xF8), SEP, PAD, EOS])))
def test_whatever_a_model_writes_is_decoded_as_we_do(ids):
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == decode(ids)


def test_the_saved_tokenizer_is_this_one(trained):
    loaded = AutoTokenizer.from_pretrained(trained)
    assert loaded.get_vocab() == TOKENIZER.get_vocab() and len(loaded) == 256
    assert (loaded.sep_token_id, loaded.pad_token_id, loaded.eos_token_id) == (SEP, PAD, EOS)
    assert loaded.all_special_ids == TOKENIZER.all_special_ids
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded("é <|sep|>").input_ids == [*encode("é "), SEP]


CHATS = [[("user", " Hi\n")], [("system", "Be brief."), ("user", "Hi")], [("user", "")],
         [("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")]]
ROLES = {"user": "Human", "assistant": "Assistant", "system": "System"}


@pytest.mark.parametrize("chat", CHATS)
def test_the_chat_template_makes_the_prompts_that_we_make_of_conversations(chat):
    prompt = as_prompt([Message(ROLES[role], text) for role, text in chat])
    example = tokenize_example(prompt, [" So long. "], 100)
    messages = [message(*turn) for turn in chat]
    asked = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True,
                                          return_dict=True)["input_ids"]
    assert bytes(asked) == example.prompt
    answered = [*messages, message("assistant", " So long. ")]
    ids = TOKENIZER.apply_chat_template(answered, return_dict=True)["input_ids"]
    assert bytes(ids) == example.prompt + example.responses[0]


# --- transformers' pipeline, and TRL --------------------------------------------------------------


def test_a_pipeline_answers_as_generate_does(reciter, trained, recited):
    prompts = [*(row["prompt"] for row in recited), ""]
    expected = [response.text for response in generate(reciter, prompts, 40, greedy=True)]
    assert len(set(expected)) > 10
    pipe = pipeline("text-generation", model=trained)
    settings = {"max_new_tokens": 40, "do_sample": False}
    chats = pipe([[message("user", prompt)] for prompt in prompts], batch_size=4, **settings)
    assert [chat[0]["generated_text"][-1]["content"] for chat in chats] == expected
    for prompt, answer in zip(prompts, expected, strict=True):  # as the text that it is
        given = prompt + "<|sep|>" if prompt else ""
        assert pipe(given, **settings)[0]["generated_text"] == given + answer


def test_a_pipeline_stops_where_the_positions_end(make_model, tmp_path):
    pipe = pipeline("text-generation", model=exported(make_model(), tmp_path))
    ids = pipe("Hi<|sep|>", return_tensors=True, eos_token_id=None)[0]["generated_token_ids"]
    assert len(ids) == 64


def test_trl_reads_our_rows_as_we_do_and_trains_the_model(trained, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForCausalLM.from_pretrained(trained)
    as_text = [{**row, "prompt": row["prompt"] + tokenizer.sep_token} for row in PAIRS]
    for name, rows in (("text", as_text), ("messages", [as_messages(row) for row in PAIRS])):
        trainer = trl.DPOTrainer(
            model=model,
            ref_model=None,
            args=trl.DPOConfig(beta=0.1, learning_rate=1e-3, max_steps=3, logging_steps=1,
                               output_dir=str(tmp_path / name), report_to=[], use_cpu=True,
                               bf16=False),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        for row, read in zip(PAIRS, trainer.train_dataset, strict=True):
            ours = tokenize_example(row["prompt"], [row["chosen"], row["rejected"]], 64)
            assert bytes(read["prompt_ids"]) == ours.prompt
            assert (bytes(read["chosen_ids"]), bytes(read["rejected_ids"])) == ours.responses
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < 0.6


# --- the command ----------------------------------------------------------------------------------


def test_the_card_tells_what_the_run_measured_and_its_example_runs(trained, capsys):
    with open(f"{trained}/README.md", encoding="utf-8") as file:
        card = file.read()
    assert "# run\n" in card and "| true_reward | 1.235 |\n| models | 2 |\n" in card
    assert "`lr=0.001`\n" in card
    cell, = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(cell, {})
    assert "'role': 'assistant'" in capsys.readouterr().out


def test_another_checkpoint_beside_the_runs_figures_does_not_get_them(make_model, tmp_path):
    exported(make_model(), tmp_path)
    save_checkpoint(make_model(), tmp_path / "run" / "base.pt")
    main([str(tmp_path / "run" / "base.pt"), "--out", str(tmp_path / "base")])
    card = (tmp_path / "base" / "README.md").read_text()
    assert "# base\n" in card and "Measured" not in card and "Settings" not in card


def test_what_cannot_be_exported_is_refused_with_the_reason(make_reward, tmp_path):
    out = ["--out", str(tmp_path / "hf")]
    for kind, model in (("RewardModel", make_reward()), ("Ensemble", Ensemble([make_reward()]))):
        save_checkpoint(model, tmp_path / "model.pt")
        with pytest.raises(UserError, match=rf"holds a {kind}, and its score head has no place"):
            main([str(tmp_path / "model.pt"), *out])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt is not a checkpoint"):
        main([str(tmp_path / "notes.txt"), *out])
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_holds_something_is_left_alone_unless_told(make_model, tmp_path):
    folder = exported(make_model(), tmp_path)
    path = str(tmp_path / "run" / "model.pt")
    with pytest.raises(UserError, match=r"holds something already: .*--overwrite"):
        main([path, "--out", folder])
    other = make_model(seed=1)
    save_checkpoint(other, path)
    main([path, "--out", folder, "--overwrite"])
    check_same_logits(other, folder)
    with pytest.raises(UserError, match=r"run holds a run, and its config\.json would be lost"):
        main([path, "--out", str(tmp_path / "run"), "--overwrite"])


def test_without_transformers_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr("minigpt.export.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install transformers"):
        main([])
