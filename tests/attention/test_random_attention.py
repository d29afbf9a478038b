"""Channel attention of any small network: a plain loop that switches channels off.

`KERAS_DELTA_EXAMPLES=1000` draws more networks than the test suite has time for.
"""

import graphs_oracle
import numpy as np
from hypothesis import strategies as st
from keras import tree
from random_graphs import build_source, build_target, compiled
from random_plans import drawn, images, labels, plans

import keras_delta as kd
from keras_delta._network.graph import Graph


@drawn(2, plans(), st.integers(0, 9), st.integers(0, 9), share=8)
def test_attention_is_that_of_a_plain_loop(plan, first, second):
    """Of two taps, the calls of shared layers among them."""
    target = build_target(plan, build_source(plan))
    model = compiled(plan, target.model)
    x, y = images(plan, 4), labels(plan, 4)
    taps = [
        name
        for name, places in target.calls(Graph(model), x).items()
        if not any("head" in place for place in places)
    ]
    taps = list({taps[i % len(taps)]: None for i in (first, second)})
    found = kd.ChannelAttention.compute(model, (x, y), taps, progress=False)

    def losses(outputs):
        heads = zip(tree.flatten(outputs), tree.flatten(y), strict=True)
        return sum(graphs_oracle.cross_entropy(v)(logits) for logits, v in heads)

    for tap in taps:
        expected = graphs_oracle.scores(model, tap, x, losses)
        np.testing.assert_allclose(
            found.scores[tap], expected, rtol=1e-4, atol=2e-6, err_msg=tap
        )
