"""A state folder that was copied to other hardware is told from the original; the same board never is."""

import os

import pytest

from device_agent import hardware

PI = {"sys/firmware/devicetree/base/serial-number": "10000000abcdef01\0"}
OTHER_PI = {"sys/firmware/devicetree/base/serial-number": "10000000abcdef02\0"}
PC = {"sys/class/dmi/id/product_uuid": "4c4c4544-0042-3510\n", "sys/class/dmi/id/board_serial": "PF0X\n"}


def adapter(name, address, *, assigned="0"):
    place = f"sys/class/net/{name}"
    return {f"{place}/device/vendor": "", f"{place}/addr_assign_type": assigned, f"{place}/address": address}


def card(name, cid, kind="SD"):
    return {f"sys/block/{name}/device/type": kind, f"sys/block/{name}/device/cid": cid}


@pytest.fixture
def board(tmp_path):
    """The marks of a made-up board."""
    made = 0

    def make(*parts, unreadable=()):
        nonlocal made
        made += 1
        place = tmp_path / str(made)
        place.mkdir()
        for path, text in {name: text for part in parts for name, text in part.items()}.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
        return hardware.look(place)

    return make


def test_a_card_moved_to_another_board_is_told_by_what_is_strongest_there(board):
    ours = board(PI, adapter("eth0", "b8:27:eb:00:00:01"), card("mmcblk0", "aa01"))
    assert "serial number" in hardware.difference(ours, board(OTHER_PI, card("mmcblk0", "aa01")))
    plain = board(adapter("eth0", "b8:27:eb:00:00:01"), card("mmcblk0", "aa01"))
    moved = board(adapter("eth0", "b8:27:eb:00:00:02"), card("mmcblk0", "aa01"))
    assert "network adapter" in hardware.difference(plain, moved)
    assert "SD card" in hardware.difference(board(card("mmcblk0", "aa01")), board(card("mmcblk0", "aa02")))


def test_a_board_with_another_adapter_or_card_is_the_same_board(board):
    ours = board(PI, adapter("eth0", "b8:27:eb:00:00:01"), card("mmcblk0", "aa01"))
    later = board(PI, adapter("eth0", "00:e0:4c:00:00:09"), card("mmcblk0", "aa02"))
    assert hardware.difference(ours, later) == ""
    assert ours.fingerprint == later.fingerprint
    plain = board(adapter("eth0", "b8:27:eb:00:00:01"))
    more = board(adapter("eth0", "b8:27:eb:00:00:01"), adapter("usb0", "00:e0:4c:00:00:09"))
    assert hardware.difference(plain, more) == ""


def test_hardware_of_another_kind_altogether_is_other_hardware(board):
    assert hardware.difference(board(PI), board(card("mmcblk0", "aa01"))) != ""


def test_what_cannot_be_told_apart_is_taken_for_the_same(board):
    nothing = board()
    assert nothing.fingerprint == ""
    assert hardware.difference(nothing, board(PI)) == ""
    assert hardware.difference(board(PI), nothing) == ""


PLACEHOLDERS = {
    "a serial of zeros": {"sys/firmware/devicetree/base/serial-number": "0000000000000000\0"},
    "what a BIOS has by default": {"sys/class/dmi/id/product_uuid": "03000200-0400-0500-0006-000700080009"},
    "a serial that was never written": {"sys/class/dmi/id/board_serial": "To Be Filled By O.E.M."},
    "an address that a virtual machine was given": adapter("eth0", "02:fc:00:00:00:01"),
    "a random address": adapter("eth0", "b8:27:eb:00:00:01", assigned="1"),
    "a virtual adapter": {"sys/class/net/veth0/addr_assign_type": "0", "sys/class/net/veth0/address": "b8:27:eb:00:00:01"},
}  # fmt: skip


@pytest.mark.parametrize("case", PLACEHOLDERS)
def test_no_mark_is_made_of(case, board):
    assert board(PLACEHOLDERS[case]).fingerprint == ""


def test_another_user_who_may_not_read_the_mark_is_no_other_hardware(board):
    kept = board(PC)
    now = hardware.Hardware({"card": ("x",)}, ("product",))
    assert hardware.difference(kept, now) == ""


@pytest.fixture
def nobody():
    """As another user than root, where the tests run as root."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_a_mark_that_may_not_be_read_is_told_as_such(tmp_path, request):
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_uuid").touch(0)
    request.getfixturevalue("nobody")
    assert "product" in hardware.look(tmp_path).unreadable


def test_the_raspberry_pi_shows_its_serial_to_containers_too(board):
    bare = board(PI)
    contained = board({"proc/cpuinfo": "processor\t: 0\nSerial\t\t: 10000000abcdef01\nModel\t\t: Pi\n"})
    assert hardware.difference(bare, contained) == ""
    assert bare.fingerprint == contained.fingerprint
