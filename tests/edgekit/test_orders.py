"""Which orders a device follows."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import OrderRefusedError
from edgekit.protocol.orders import Followed, Identity, accept, unknown
from edgekit.wire.messages import Order, OrderedBundle

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ME = Identity("fleet-1", "board-1", 1, ("x86-64-v4-vnni", "x86-64-v3"), ("digits",))
SHA = "a" * 64


def order(**changes: object) -> Order:
    bundle = OrderedBundle(f"digits/1.0.0/x86-64-v3/{SHA}.edgekit", SHA, 10)
    plain = Order("fleet-1", "board-1", 1, {"digits": bundle}, 5, NOW, NOW + timedelta(days=30))
    return msgspec.structs.replace(plain, **changes)


def test_an_order_for_this_device_is_followed_and_its_counter_kept() -> None:
    followed = accept(order(), b"bytes", ME, Followed(), NOW)
    assert followed is not None
    assert followed.counter == 5


def test_the_same_order_again_does_nothing() -> None:
    followed = accept(order(), b"bytes", ME, Followed(), NOW)
    assert followed is not None
    assert accept(order(), b"bytes", ME, followed, NOW) is None


def test_a_deployment_that_this_device_does_not_have_holds_the_others_up_for_nothing() -> None:
    known = order().deployments
    strange = OrderedBundle("of another device altogether", SHA, 10)
    mixed = order(deployments={**known, "speech": strange})
    followed = accept(mixed, b"bytes", ME, Followed(), NOW)
    assert followed is not None
    assert followed.counter == 5
    assert unknown(mixed, ME) == ("speech",)
    assert unknown(order(), ME) == ()


def _deploy(name: str, target: str) -> dict[str, object]:
    return {"deployments": {name: OrderedBundle(target, SHA, 10)}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fleet": "fleet-2"}, "fleet 'fleet-2'"),
        ({"device": "board-2"}, "device 'board-2'"),
        ({"enrolment": 2}, "enrolment 2"),
        ({"expires": NOW}, "expired"),
        ({"counter": 4}, "not above 4"),
        ({"counter": 3}, "not above 4"),
        (_deploy("speech", f"digits/1/x86-64-v3/{SHA}.edgekit"), "not enrolled for what it names"),
        (_deploy("digits", f"digits/1/x86-64-v3/{'b' * 64}.edgekit"), "does not name its own digest"),
        (_deploy("digits", f"digits/1/raspberry-pi-5/{SHA}.edgekit"), "ordered for profile raspberry-pi-5"),
        (_deploy("digits", f"{SHA}.edgekit"), "does not name its own digest"),
    ],
)
def test_refuses(changes: dict[str, object], says: str) -> None:
    with pytest.raises(OrderRefusedError, match=says):
        accept(order(**changes), b"bytes", ME, Followed(4, "other"), NOW)


@given(st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=1), st.integers(-1, 1)), max_size=30))
def test_the_counter_never_goes_back_and_never_stands_for_two_orders(
    arrivals: list[tuple[int, bytes, int]],
) -> None:
    last, followed = Followed(), []
    for counter, payload, days in arrivals:
        try:
            mark = accept(order(counter=counter, expires=NOW + timedelta(days=days)), payload, ME, last, NOW)
        except OrderRefusedError:
            continue
        if mark is not None:
            assert mark.counter > last.counter
            assert days > 0
            last = mark
            followed.append(counter)
    assert followed == sorted(set(followed))
