"""When a desk reports of a sequence, whether steps are taken one by one or several in one go."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings, Drawn
from cluster.messages import Plan, Start, ids
from cluster.sampling import SamplingParams
from tests.desk.test_forks import JOINED

SIZE = JOINED.block_size


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_block_of_the_prompt_that_is_filled_on_the_way_is_told(num_steps: int) -> None:
    """All but the last token of the prompt was found in cached blocks: the step that fills the last one is a decode,
    behind which others go on at once."""
    desk = Desk(JOINED, DeskSettings(token_budget=16, vocab_size=100))
    sampling = SamplingParams(temperature=1.0, seed=1, max_tokens=20, eos_token_ids=(5,))
    num_prompt = 2 * SIZE
    tokens, table = ids(range(10, 10 + num_prompt)), ids(range(5))
    begun = Start(1, "q", 0, 1, "g0", 1, tokens, num_prompt, num_prompt - 1, table, 5 * SIZE, 1, sampling, b"", b"")
    desk.obey(Plan("w0", 1, epoch=1, number=1, ahead=1, result=0, starts=(begun,)))
    desk.take_result(0.01)
    batch = desk.next()
    assert desk.most_steps(batch, num_steps, 1 << 20) == num_steps
    flight = desk.launched(batch, num_steps)
    earlier = np.full((num_steps - 1, 1), 50)
    desk.retire(flight, Drawn(np.full(1, 50), np.zeros(1, np.bool_), earlier))
    desk.check()
    result = desk.take_result(0.01)
    assert result is not None and list(result.advances.positions) == [num_prompt + num_steps - 1]
