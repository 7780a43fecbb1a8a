import copy
import os
import pickle
import random

import pytest
import torch
from torch import nn

from minigpt import MiniGPT, load_checkpoint, save_checkpoint
from minigpt.checkpoint import FORMAT, load_state, save_state
from minigpt.disk import write_atomically
from minigpt.errors import UserError
from reward import Ensemble, RewardModel, score


class Malicious:
    """A pickle that makes a folder as soon as it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_malicious_class_does_run_where_code_is_run(tmp_path):
    torch.save(Malicious(tmp_path / "made"), tmp_path / "bad.pt")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "made").exists()  # so the tests below would notice


def contents_with(bad):
    def checkpoint(settings, weights):
        return {"format": FORMAT, "model": "MiniGPT", "settings": settings, "weights": weights}
    return {"bare": bad, "in a weight": checkpoint({}, {"a": bad}),
            "in a setting": checkpoint({"ff_dim": bad}, {})}


@pytest.mark.parametrize("load", [load_checkpoint, load_state])
@pytest.mark.parametrize("where", ["bare", "in a weight", "in a setting"])
@pytest.mark.parametrize("save", ["zip", "old torch", "plain pickle"])
def test_malicious_file_is_refused_by_name_and_never_run(tmp_path, load, where, save):
    path, made = tmp_path / "bad.pt", tmp_path / "made"
    content = contents_with(Malicious(made))[where]
    if save == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(ValueError, match=r"bad\.pt"):
        load(path)
    assert not made.exists()


@pytest.mark.parametrize("kind", ["MiniGPT", "RewardModel"])
def test_model_survives_save_and_load(tmp_path, make_model, make_reward, weights_equal, kind):
    make = make_model if kind == "MiniGPT" else make_reward
    model = make(num_heads=4, max_seq_len=48).train()
    save_checkpoint(model, tmp_path / "sub" / "model.pt")
    loaded = load_checkpoint(str(tmp_path / "sub" / "model.pt"))
    assert type(loaded).__name__ == kind
    assert loaded.settings == model.settings
    assert weights_equal(loaded, model)
    assert not loaded.training
    ids = torch.randint(0, 256, (2, 9))
    assert torch.equal(loaded(ids), model(ids))


def test_truncated_file_is_refused_by_name(tmp_path, make_model):
    save_checkpoint(make_model(), tmp_path / "whole.pt")
    whole, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "truncated.pt"
    for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        path.write_bytes(whole[:int(share * len(whole))])
        with pytest.raises(ValueError, match=r"truncated\.pt"):
            load_checkpoint(path)


def test_damaged_file_is_refused_by_name_or_read_rightly(tmp_path, make_model):
    save_checkpoint(make_model(), tmp_path / "whole.pt")
    whole, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "damaged.pt"
    rng, refused = random.Random(0), 0
    for _ in range(60):
        bad = bytearray(whole)
        start = rng.choice([rng.randrange(2000), rng.randrange(len(bad)),
                            len(bad) - 1 - rng.randrange(2000)])
        for i in range(start, min(start + 8, len(bad))):
            bad[i] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            load_checkpoint(path)
        except ValueError as error:
            assert "damaged.pt" in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("content", [
    b"", b"hello", b"PK\x03\x04", b"\x80\x04}.", b"\x80\x02.", bytes(range(256)) * 40,
    b'{"format": "minigpt-1"}', b"\x93NUMPY"])
def test_foreign_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [
    [1, 2], {"a": 1}, torch.zeros(3), {"format": "minigpt-9", "model": "MiniGPT"},
    {"state_dict": {}}, {"format": FORMAT, "model": "GPT5", "settings": {}, "weights": {}}])
def test_a_foreign_torch_file_is_refused_by_name(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        load_checkpoint(tmp_path / "foreign.pt")


@pytest.mark.parametrize("change", [
    lambda state: state.pop("model"),
    lambda state: state.pop("weights"),
    lambda state: state.pop("settings"),
    lambda state: state.update(settings={"width": 7}),
    lambda state: state.update(settings={"embed_dim": "big"}),
    lambda state: state.update(weights=[1, 2]),
    lambda state: state["weights"].update({"final_norm.bias": 7})],
    ids=["no model", "no weights", "no settings", "other settings", "bad setting",
         "weights no dict", "weight no tensor"])
def test_a_file_of_our_format_but_other_content_is_refused_by_name(tmp_path, make_model, small,
                                                                   change):
    state = {"format": FORMAT, "model": "MiniGPT", "settings": small,
             "weights": make_model().state_dict()}
    change(state)
    save_state(state, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt"):
        load_checkpoint(tmp_path / "odd.pt")


@pytest.mark.parametrize(("change", "message"), [
    (lambda weights: weights.pop("head.weight"), "'head.weight' is missing"),
    (lambda weights: weights.update({"head.weight": torch.zeros(1, 7)}),
     r"'head.weight' has shape \(1, 7\)"),
    (lambda weights: weights.update(extra=torch.zeros(1)), "'extra'.*no such weight"),
    (lambda weights: weights.pop("trunk.final_norm.bias"),
     "'trunk.final_norm.bias' is missing")])
def test_missing_or_odd_weight_is_named_with_the_file(tmp_path, make_reward, change, message):
    model = make_reward()
    weights = model.state_dict()
    change(weights)
    save_state({"format": FORMAT, "model": "RewardModel", "settings": model.settings,
                "weights": weights}, tmp_path / "reward.pt")
    with pytest.raises(ValueError, match=r"reward\.pt.*" + message):
        load_checkpoint(tmp_path / "reward.pt")


def test_language_model_saved_as_a_reward_model_is_refused(tmp_path, make_model):
    model = make_model()
    save_state({"format": FORMAT, "model": "RewardModel", "settings": model.settings,
                "weights": model.state_dict()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt"):
        load_checkpoint(tmp_path / "x.pt")


def test_no_file_is_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.pt"
    save_state({"a": 1}, path)

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert load_state(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_training_state_is_refused_by_name(tmp_path):
    save_state({"step": 1, "weights": torch.zeros(1000)}, tmp_path / "state.pt")
    whole = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r"state\.pt"):
        load_state(tmp_path / "state.pt")


# --- what was saved can be loaded -----------------------------------------------------------------

WRAPPERS = {"compiled": torch.compile, "parallel": nn.DataParallel,
            "both": lambda model: nn.DataParallel(torch.compile(model))}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("kind", ["MiniGPT", "RewardModel"])
def test_a_wrapped_model_is_saved_as_the_model_inside(tmp_path, make_model, make_reward,
                                                      weights_equal, kind, wrap):
    model = (make_model if kind == "MiniGPT" else make_reward)()
    save_checkpoint(wrap(model), tmp_path / "wrapped.pt")
    loaded = load_checkpoint(tmp_path / "wrapped.pt")
    assert type(loaded) is type(model) and weights_equal(loaded, model)


def test_a_model_with_a_compiled_part_is_saved_whole(tmp_path, make_model, weights_equal):
    model = make_model()
    model.blocks[0] = torch.compile(model.blocks[0])
    save_checkpoint(model, tmp_path / "part.pt")
    assert weights_equal(load_checkpoint(tmp_path / "part.pt"), make_model())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_a_wrapper_gave_are_read_as_if_they_were_plain(tmp_path, make_model, prefix,
                                                                  weights_equal):
    model = make_model()
    weights = {prefix + name: weight for name, weight in model.state_dict().items()}
    save_state({"format": FORMAT, "model": "MiniGPT", "settings": model.settings,
                "weights": weights}, tmp_path / "prefixed.pt")
    assert weights_equal(load_checkpoint(tmp_path / "prefixed.pt"), model)


class Bigger(MiniGPT):
    """A model of one's own."""


@pytest.mark.parametrize("model", [Bigger(embed_dim=8, num_heads=2, num_layers=1),
                                   nn.DataParallel(Bigger(embed_dim=8, num_heads=2, num_layers=1)),
                                   nn.Linear(2, 2)])
def test_a_model_that_could_not_be_loaded_is_refused_at_the_save(tmp_path, model):
    with pytest.raises(UserError, match=r"a (Bigger|Linear) cannot be saved.*state_dict"):
        save_checkpoint(model, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def add_layer(model):
    model.blocks.append(copy.deepcopy(model.blocks[0]))


def add_positions(model):
    model.position_embedding = nn.Embedding(100, 32)


def add_buffer(model):
    model.register_buffer("seen", torch.zeros(3))


def parametrize(model):
    nn.utils.parametrizations.weight_norm(model.blocks[0].ff_in)


def drop_layer(model):
    del model.blocks[1]


@pytest.mark.parametrize(("change", "words"), [
    (add_layer, r"'blocks\.2\."), (add_positions, r"position_embedding.*\(100, 32\).*\(64, 32\)"),
    (add_buffer, "'seen'"), (parametrize, r"ff_in"), (drop_layer, r"'blocks\.1\..* is missing")])
def test_a_model_that_was_changed_is_refused_at_the_save(tmp_path, make_model, change, words):
    model = make_model()
    change(model)
    with pytest.raises(UserError, match=rf"model\.pt is not written.*MiniGPT was changed.*{words}"):
        save_checkpoint(model, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_saving_takes_no_random_number(tmp_path, make_model):
    model = make_model()
    before = torch.get_rng_state()
    save_checkpoint(model, tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_at_the_save(tmp_path, make_reward,
                                                                         bad, weights_equal):
    model, path = make_reward(), tmp_path / "model.pt"
    save_checkpoint(model, path)
    with torch.no_grad():
        model.trunk.blocks[1].ff_in.bias[5] = bad
    for broken in (model, torch.compile(model)):
        with pytest.raises(FloatingPointError, match=r"'trunk\.blocks\.1\.ff_in\.bias' is not "
                                                     r"finite.*model\.pt is not written"):
            save_checkpoint(broken, path)
    assert weights_equal(load_checkpoint(path), make_reward())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("settings", [{"num_heads": 0}, {"max_seq_len": 0}, {"num_layers": -1},
                                      {"embed_dim": 1.5}, {"num_heads": 5}, {"vocab_size": None}])
def test_settings_that_make_no_model_are_refused_by_name(tmp_path, make_model, settings):
    model = make_model()
    save_state({"format": FORMAT, "model": "MiniGPT", "settings": {**model.settings, **settings},
                "weights": model.state_dict()}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt"):
        load_checkpoint(tmp_path / "odd.pt")


# --- ensembles ------------------------------------------------------------------------------------

POLITE = {"combine": "mean", "weights": [0.7, -0.3]}


@pytest.fixture
def ensemble(make_reward):
    return Ensemble([make_reward(1), make_reward(2, pooling="mean", reads="response",
                                                 max_seq_len=48)], **POLITE)


@pytest.mark.parametrize("how", [{}, {"combine": "min"}, POLITE])
def test_an_ensemble_survives_save_and_load(tmp_path, ensemble, texts, how, weights_equal):
    model, (prompts, responses) = Ensemble(ensemble.members, **how), zip(*texts, strict=True)
    for wrap in (lambda model: model, *WRAPPERS.values()):
        save_checkpoint(wrap(model), tmp_path / "model.pt")
        loaded = load_checkpoint(tmp_path / "model.pt")
        assert type(loaded) is Ensemble and not any(part.training for part in loaded.modules())
        assert loaded.settings == model.settings and weights_equal(loaded, model)
        assert torch.equal(score(loaded, prompts, responses), score(model, prompts, responses))


def test_an_ensemble_of_wrapped_members_is_saved_as_that_of_the_models_inside(
        tmp_path, ensemble, weights_equal):
    save_checkpoint(Ensemble(map(torch.compile, ensemble.members), **POLITE), tmp_path / "model.pt")
    assert weights_equal(load_checkpoint(tmp_path / "model.pt"), ensemble)


def no_reward(prompts, responses):
    return [0.0] * len(prompts)


class OwnReward(RewardModel):
    """A reward model of one's own."""


@pytest.mark.parametrize(("member", "name"), [
    (no_reward, "FunctionReward"), (Ensemble([no_reward]), "Ensemble"),
    (OwnReward(embed_dim=8, num_heads=2, num_layers=1), "OwnReward")])
def test_an_ensemble_of_other_things_than_reward_models_is_refused_at_the_save(
        tmp_path, make_reward, member, name):
    with pytest.raises(UserError, match=f"Ensemble with a {name} among its members cannot be "
                                        "saved.*RewardModels"):
        save_checkpoint(Ensemble([make_reward(), member]), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_ensemble_that_was_changed_is_refused_at_the_save(tmp_path, ensemble):
    drop_layer(ensemble.members[1].trunk)
    with pytest.raises(UserError, match=r"Ensemble was changed.*members\.1\.trunk\.blocks\.1\..*"
                                        "is missing"):
        save_checkpoint(ensemble, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [
    {"members": []}, {"members": None}, {"members": [7]}, {"members": [{"pooling": "max"}]},
    {"members": "ab"}, {"combine": "max"}, {"weights": [1.0]}, {"weights": "ab"}, {"more": 1}],
    ids=str)
def test_settings_that_make_no_ensemble_are_refused_by_name(tmp_path, ensemble, change):
    save_state({"format": FORMAT, "model": "Ensemble", "settings": {**ensemble.settings, **change},
                "weights": ensemble.state_dict()}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt: its settings make no Ensemble"):
        load_checkpoint(tmp_path / "odd.pt")


def test_an_ensemble_that_lacks_a_members_weight_is_refused_by_name(tmp_path, ensemble):
    weights = ensemble.state_dict()
    del weights["members.1.head.bias"]
    save_state({"format": FORMAT, "model": "Ensemble", "settings": ensemble.settings,
                "weights": weights}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt: 'members\.1\.head\.bias' is missing"):
        load_checkpoint(tmp_path / "odd.pt")
