"""Which profile a machine gets: the most specific sign wins, and doubts are said."""

from collections.abc import Callable
from typing import Any

import pytest

from firmware_profiles import detect, load, names, select
from firmware_profiles.catalog import all_profiles
from firmware_profiles.matcher import Facts, choose
from firmware_profiles.profile import Pci
from protocols.errors import UserError

NPU = Pci(0x8086, 0x7D1D, 0x1200)
RTX = Pci(0x10DE, 0x2684, 0x0300)


def test_every_profile_is_complete() -> None:
    for name in names():
        profile = load(name)
        assert profile.name == name
        assert profile.providers[-1] == "CPUExecutionProvider"
        assert profile.match.arch
        assert profile.temperature


def test_the_device_tree_counts_more_than_dmi_and_dmi_more_than_pci() -> None:
    dmi = {"sys_vendor": "NVIDIA", "product_name": "NVIDIA Jetson AGX Orin Developer Kit"}
    tree = Facts("aarch64", compatible=("radxa,rock-5b", "rockchip,rk3588"), dmi=dmi, pci=(RTX,))
    assert choose(tree, all_profiles()).profile.name == "rk3588"
    assert choose(Facts("aarch64", dmi=dmi, pci=(RTX,)), all_profiles()).profile.name == (
        "jetson-orin"
    )


def test_a_board_is_recognised_by_model_or_dmi_alone() -> None:
    by_model = Facts("aarch64", model="Raspberry Pi 5 Model B Rev 1.1")
    assert choose(by_model, all_profiles()).profile.name == "raspberry-pi-5"
    uefi = Facts(
        "aarch64",
        dmi={"sys_vendor": "Raspberry Pi Foundation", "product_name": "Raspberry Pi 4 Model B"},
    )
    found = choose(uefi, all_profiles())
    assert found.profile.name == "raspberry-pi-4"
    assert "DMI" in found.why


def test_two_signs_of_equal_weight_are_ranked_and_the_other_is_named() -> None:
    found = choose(Facts("x86_64", pci=(NPU, RTX)), all_profiles())
    assert found.profile.name == "x86-64-nvidia"
    assert any("intel-core-ultra" in sentence for sentence in found.warnings)


def test_an_audio_device_of_nvidia_is_no_gpu() -> None:
    audio = Pci(0x10DE, 0x22BE, 0x0403)
    assert choose(Facts("x86_64", pci=(audio,)), all_profiles()).profile.name == "generic-x86-64"


def test_a_sign_of_another_architecture_does_not_count() -> None:
    facts = Facts("x86_64", compatible=("brcm,bcm2712",))
    assert choose(facts, all_profiles()).profile.name == "generic-x86-64"


def test_an_unknown_board_gets_the_generic_profile_and_is_told(
    machine: Callable[[str], Any],
) -> None:
    found = detect(machine("generic-aarch64").root, "aarch64")
    assert found.profile.name == "generic-aarch64"
    assert any("Acme Sensor Hub" in sentence for sentence in found.warnings)


@pytest.mark.parametrize(("arch", "name"), [("riscv64", "aarch64"), ("i686", "x86-64")])
def test_an_unknown_architecture_gets_a_stand_in_and_is_told(arch: str, name: str) -> None:
    found = choose(Facts(arch), all_profiles())
    assert found.profile.name == f"generic-{name}"
    assert any(arch in sentence for sentence in found.warnings)


def test_this_machine_has_a_profile() -> None:
    assert detect().profile.name in names()


def test_a_configuration_selects_by_name_or_lets_detect() -> None:
    assert select("rk3588").profile.name == "rk3588"
    assert select("auto").profile.name == select("").profile.name == detect().profile.name
    with pytest.raises(UserError, match=r"no profile 'rk3599'.*rk3588"):
        select("rk3599")


def test_throttling_of_the_past_is_not_throttling_now(machine: Callable[[str], Any]) -> None:
    from device_agent.sensing.sampler import Sampler  # noqa: PLC0415 - this file is about profiles

    box = machine("raspberry-pi-4")
    sampler = Sampler(box.root, load("raspberry-pi-4"), now_ms=0)
    try:
        assert sampler.sample(500).throttled is False
        box.age()
        assert sampler.sample(1000).throttled is True
    finally:
        sampler.close()
