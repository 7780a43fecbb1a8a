import pytest
import torch

from minigpt.batching import Batch
from minigpt.masks import positions_and_visibility, predictor_columns, predictor_positions


def seen(visible):
    """The columns that each token of the first row sees."""
    return [row.nonzero()[:, 0].tolist() for row in visible[0]]


def test_responses_of_one_row_see_the_prompt_and_themselves_and_not_each_other():
    positions, visible = positions_and_visibility(torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1]]))
    assert positions.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0]]
    assert seen(visible)[:7] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3],
                                 [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6]]


def test_without_the_prompt_a_response_sees_itself_alone():
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1]])
    batch = Batch(segments, segments, torch.tensor([0])).without_prompts()
    positions, visible = positions_and_visibility(batch.segments)
    assert positions.tolist() == [[0, 0, 0, 1, 0, 1, 2, 0]]
    assert seen(visible)[2:7] == [[2], [2, 3], [4], [4, 5], [4, 5, 6]]


def test_in_a_window_a_token_sees_the_last_of_what_it_would_see():
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1]])
    positions, visible = positions_and_visibility(segments, window=2)
    assert torch.equal(positions, positions_and_visibility(segments)[0])
    assert seen(visible)[:7] == [[0], [0, 1], [1, 2], [2, 3], [1, 4], [4, 5], [5, 6]]


def test_in_a_window_responses_without_their_prompt_do_not_see_each_other():
    _, visible = positions_and_visibility(torch.tensor([[-1, -1, 1, 1, 1, 2, 2]]), window=2)
    assert seen(visible)[2:] == [[2], [2, 3], [3, 4], [5], [5, 6]]


def test_in_a_window_padding_is_not_counted():
    positions, visible = positions_and_visibility(torch.tensor([[-1, 0, -1, 1, 1, -1, 1, -1]]),
                                                  window=2)
    assert positions[0, [1, 3, 4, 6]].tolist() == [0, 1, 2, 3]
    assert [seen(visible)[column] for column in (1, 3, 4, 6)] == [[1], [1, 3], [3, 4], [4, 6]]


@pytest.mark.parametrize("segments", [[-1, -1, 0, 0, 1, 1], [0, -1, 0, -1, 1, 1],
                                      [0, 0, 1, -1, -1, 1]])
def test_padding_anywhere_takes_no_position_and_is_seen_by_no_token(segments):
    real = [column for column, segment in enumerate(segments) if segment >= 0]
    positions, visible = positions_and_visibility(torch.tensor([segments]))
    assert positions[0, real].tolist() == [0, 1, 2, 3]
    assert [seen(visible)[column] for column in real] == [real[:n] for n in range(1, 5)]


def test_rows_of_one_response_need_no_mask():
    positions, visible = positions_and_visibility(torch.tensor([[0, 0, 1, 1, -1]]))
    assert positions.tolist() == [[0, 1, 2, 3, 0]]
    assert visible is None


@pytest.mark.parametrize(("segments", "expected"), [
    ([[0]], [[0]]), ([[0, -1], [0, 1]], [[0, 0], [0, 1]])])
def test_rows_of_one_token_need_no_mask(segments, expected):
    positions, visible = positions_and_visibility(torch.tensor(segments))
    assert positions.tolist() == expected
    assert visible is None


def test_first_token_of_every_response_is_predicted_from_the_end_of_the_prompt():
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1], [0, 1, 2, 2, -1, -1, -1, -1]])
    found = predictor_columns(segments)
    assert found[0, 2:7].tolist() == [1, 2, 1, 4, 5]
    assert found[1, 1:4].tolist() == [0, 0, 2]
    rows, columns = predictor_positions(segments)
    assert rows.tolist() == [0] * 5 + [1] * 3
    assert columns.tolist() == [1, 2, 1, 4, 5, 0, 0, 2]
