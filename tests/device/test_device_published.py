"""Hundreds of handovers while others publish: what gateways keep reaches the node, each once."""

import pytest
from device_published import Play, Shape

ALONE = Shape(lost_share=0.3, double_share=0.1)
BOTH = Shape(lost_share=0.6, double_share=0.1, radios=2, stay_ms=(50, 3000), topics=2)
BEGINS = Shape(restart_share=0.8, stay_ms=(3000, 9000), handovers=25)
"""The question of a node is lost with the gateway that carries it."""
FAR = Shape(delay_ms=(300, 1000), stay_ms=(5000, 9000))
"""Brokers are slow for all that is asked and answered."""
SHORT = Shape(delay_ms=(1, 300), stay_ms=(50, 1500), topics=2)


@pytest.mark.parametrize("shape", [ALONE, BOTH, SHORT, BEGINS, FAR])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_published_while_a_node_goes_from_cell_to_cell_comes_once(
    shape: Shape, seed: int
) -> None:
    play = Play(seed, shape)
    play.run()
    assert play.node.core.counts["missed"] > 100, "it was handed what it had missed"
    assert play.missing() == []
    assert play.twice() == []
