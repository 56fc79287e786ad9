# SPDX-License-Identifier: Apache-2.0
"""Which blob of which image is asked for first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.swarm.order import ImageTurns, Place, leading

ONE, TWO, THREE = (Digest.of(name) for name in (b"one", b"two", b"three"))
PLACES = st.lists(st.builds(Place, st.sampled_from([ONE, TWO, THREE]), st.integers(0, 5)))


def served(turns: ImageTurns, places: list[Place], count: int) -> list[Place]:
    """What is asked for, one after the other, while all of these are wanted."""
    order = []
    for _ in range(count):
        place = min(places, key=turns.rank)
        turns.asked(place)
        order.append(place)
    return order


def test_the_lowest_layer_of_an_image_comes_first() -> None:
    places = [Place(ONE, layer) for layer in (3, 1, 2)]
    assert served(ImageTurns(), places, 3) == [Place(ONE, 1)] * 3


def test_images_take_turns_however_many_layers_they_have() -> None:
    places = [*(Place(ONE, layer) for layer in range(5)), Place(TWO, 4)]
    assert served(ImageTurns(), places, 4) == [Place(ONE, 0), Place(TWO, 4)] * 2


def test_an_image_that_was_forgotten_has_the_next_turn() -> None:
    turns = ImageTurns()
    places = [Place(ONE, 0), Place(TWO, 0)]
    first, _, third = served(turns, places, 3)
    assert first == third
    turns.forget(first.image)
    assert served(turns, places, 1) == [first]


@given(PLACES)
def test_of_each_image_one_layer_leads_and_none_is_below_it(places: list[Place]) -> None:
    first = leading(places)
    assert first <= set(places)
    assert len(first) == len({place.image for place in places})
    for place in places:
        assert any(led.image == place.image and led.layer <= place.layer for led in first)
